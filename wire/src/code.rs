//! The TSP codes: the numbers by which published SDKs tell errors apart, each with its HTTP status.

/// Why an operation failed, in the numbers of the public API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TspCode {
    /// 100: something unexpected inside the proxy.
    UnknownError,
    /// 101: API key missing or not recognized.
    Unauthorized,
    /// 102: the request cannot be understood.
    InvalidRequest,
    /// 200: the tenant has an active KMS config, but none is primary, so nothing new can be encrypted.
    NoPrimaryKmsConfiguration,
    /// 201: no such tenant, or none of its KMS configs is active.
    UnknownTenantOrNoActiveKmsConfigurations,
    /// 202: the EDEK names a KMS config that is not active for this tenant.
    KmsConfigurationDisabled,
    /// 203: the EDEK is not one.
    InvalidProvidedEdek,
    /// 204: the KMS answered a wrap with nothing usable.
    KmsWrapFailed,
    /// 205: the KMS answered an unwrap with nothing usable, or refused the ciphertext.
    KmsUnwrapFailed,
    /// 206: the KMS refused our credentials.
    KmsAuthorizationFailed,
    /// 207: the key is missing or disabled, its path is wrong, or a permission is missing.
    KmsConfigurationInvalid,
    /// 208: the KMS could not be reached, also not at the second try.
    KmsUnreachable,
    /// 209: the KMS limits our rate.
    KmsThrottled,
    /// 210: the account at the KMS is suspended, unpaid or closed.
    KmsAccountIssue,
    /// 301: the event cannot be queued.
    SecurityEventRejected,
    /// 401: a tenant secret could not be created.
    TenantSecretCreationFailed,
}

impl TspCode {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::UnknownError,
        Self::Unauthorized,
        Self::InvalidRequest,
        Self::NoPrimaryKmsConfiguration,
        Self::UnknownTenantOrNoActiveKmsConfigurations,
        Self::KmsConfigurationDisabled,
        Self::InvalidProvidedEdek,
        Self::KmsWrapFailed,
        Self::KmsUnwrapFailed,
        Self::KmsAuthorizationFailed,
        Self::KmsConfigurationInvalid,
        Self::KmsUnreachable,
        Self::KmsThrottled,
        Self::KmsAccountIssue,
        Self::SecurityEventRejected,
        Self::TenantSecretCreationFailed,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::UnknownError => 100,
            Self::Unauthorized => 101,
            Self::InvalidRequest => 102,
            Self::NoPrimaryKmsConfiguration => 200,
            Self::UnknownTenantOrNoActiveKmsConfigurations => 201,
            Self::KmsConfigurationDisabled => 202,
            Self::InvalidProvidedEdek => 203,
            Self::KmsWrapFailed => 204,
            Self::KmsUnwrapFailed => 205,
            Self::KmsAuthorizationFailed => 206,
            Self::KmsConfigurationInvalid => 207,
            Self::KmsUnreachable => 208,
            Self::KmsThrottled => 209,
            Self::KmsAccountIssue => 210,
            Self::SecurityEventRejected => 301,
            Self::TenantSecretCreationFailed => 401,
        }
    }

    /// The HTTP status that goes with the code. 4xx where trying again cannot help, 5xx where it may; never 408,
    /// which HTTP stacks repeat by themselves.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::UnknownError | Self::TenantSecretCreationFailed => 500,
            Self::Unauthorized => 401,
            Self::InvalidRequest => 400,
            Self::NoPrimaryKmsConfiguration
            | Self::UnknownTenantOrNoActiveKmsConfigurations
            | Self::KmsConfigurationDisabled
            | Self::InvalidProvidedEdek
            | Self::KmsAuthorizationFailed
            | Self::KmsConfigurationInvalid
            | Self::KmsAccountIssue => 422,
            Self::KmsWrapFailed | Self::KmsUnwrapFailed | Self::KmsUnreachable => 502,
            Self::KmsThrottled => 429,
            Self::SecurityEventRejected => 503,
        }
    }
}
