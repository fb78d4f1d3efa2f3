//! How lists are filtered, sorted and cut into pages.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::{IntoParams, ToSchema};

use super::shapes::{KmsType, Timestamp};

/// Entries of a page if nothing is said.
const PAGE_SIZE: i64 = 10;

/// Entries of a page at most; who asks for more gets this many.
const PAGE_SIZE_MAX: i64 = 500;

/// Numbers in one filter at most.
pub(super) const NUMBERS_MAX: usize = 1_000;

/// Which page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paging {
    pub(crate) page: i64,
    pub(crate) size: i64,
}

impl Paging {
    fn new(page: i64, size: i64) -> Self {
        Self {
            page,
            size: size.min(PAGE_SIZE_MAX),
        }
    }

    pub(crate) fn offset(self) -> i64 {
        (self.page - 1).saturating_mul(self.size)
    }

    /// Pages of `total` entries.
    pub(crate) fn pages(self, total: i64) -> i64 {
        total / self.size + i64::from(total % self.size != 0)
    }
}

fn first() -> i64 {
    1
}

fn page_size() -> i64 {
    PAGE_SIZE
}

/// A number from 1 on.
fn positive<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let number = i64::from(u32::deserialize(from)?);
    if number > 0 {
        Ok(number)
    } else {
        Err(D::Error::custom("a number is not from 1 on"))
    }
}

/// Numbers with commas between them.
fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<i64>>, D::Error> {
    let Some(text) = Option::<NumbersText>::deserialize(from)? else {
        return Ok(None);
    };
    let numbers = match text {
        NumbersText::Text(text) => {
            let parts = text.split(',').map(str::parse::<i64>);
            parts.collect::<Result<Vec<_>, _>>()
        }
        NumbersText::Numbers(numbers) => Ok(numbers),
    };
    let numbers = numbers.map_err(|_| D::Error::custom("not numbers with commas between them"))?;
    if numbers.len() > NUMBERS_MAX {
        return Err(D::Error::custom("too many numbers"));
    }
    Ok(Some(numbers))
}

/// From a URL, and from the bridge.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumbersText {
    Text(String),
    Numbers(Vec<i64>),
}

/// Which way a list is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "desc")]
pub(crate) enum SortDirection {
    Asc,
    #[default]
    Desc,
}

impl SortDirection {
    pub(crate) const fn sql(self) -> &'static str {
        match self {
            Self::Asc => "ASC",
            Self::Desc => "DESC",
        }
    }
}

/// What tenants are sorted by.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "created")]
pub(crate) enum TenantColumn {
    Name,
    Id,
    #[default]
    Created,
    Updated,
}

/// Where a tenant is in its life.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TenantStatus {
    Accepted,
    NotAccepted,
    Archived,
}

/// Which tenants.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct TenantQuery {
    /// Part of an id or a name
    pub(crate) query: Option<String>,
    /// What to sort by
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_column: TenantColumn,
    /// Where they are in their life
    #[param(inline)]
    pub(crate) status: Option<TenantStatus>,
    /// Which way to sort
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_direction: SortDirection,
    /// Entries of a page; more than 500 are 500
    #[serde(default = "page_size", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 10)]
    pub(crate) page_size: i64,
    /// The page, from 1
    #[serde(default = "first", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 1)]
    pub(crate) page: i64,
}

/// What KMS configs are sorted by.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "created")]
pub(crate) enum KmsConfigColumn {
    Assignments,
    #[default]
    Created,
    Updated,
}

/// Which KMS configs.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct KmsConfigQuery {
    /// What to sort by
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_column: KmsConfigColumn,
    /// The kind of KMS
    #[param(inline)]
    pub(crate) kms_type: Option<KmsType>,
    /// Whether proxies may lease keys from it
    pub(crate) leasing_enabled: Option<bool>,
    /// Which way to sort
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_direction: SortDirection,
    /// Entries of a page; more than 500 are 500
    #[serde(default = "page_size", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 10)]
    pub(crate) page_size: i64,
    /// The page, from 1
    #[serde(default = "first", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 1)]
    pub(crate) page: i64,
}

/// What assignments are sorted by.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "created")]
pub(crate) enum AssignmentColumn {
    Active,
    Primary,
    #[default]
    Created,
    Updated,
}

/// What an assignment is good for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AssignmentStatus {
    Active,
    Disabled,
    Primary,
}

/// Which assignments.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct AssignmentQuery {
    /// What to sort by
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_column: AssignmentColumn,
    /// What they are good for
    #[param(inline)]
    pub(crate) status: Option<AssignmentStatus>,
    /// Part of a tenant's id or name, or the number of a KMS config
    pub(crate) query: Option<String>,
    /// Which way to sort
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_direction: SortDirection,
    /// Entries of a page; more than 500 are 500
    #[serde(default = "page_size", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 10)]
    pub(crate) page_size: i64,
    /// The page, from 1
    #[serde(default = "first", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 1)]
    pub(crate) page: i64,
}

/// Which tags.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct TagQuery {
    /// Part of its text
    pub(crate) tag_text: Option<String>,
    /// Entries of a page; more than 500 are 500
    #[serde(default = "page_size", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 10)]
    pub(crate) page_size: i64,
    /// The page, from 1
    #[serde(default = "first", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 1)]
    pub(crate) page: i64,
}

/// What tenant secrets are sorted by.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "created")]
pub(crate) enum SecretColumn {
    #[default]
    Created,
    Updated,
}

/// A tenant secret's type, as a filter spells it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SecretTypeFilter {
    Search,
    DeterministicEncryption,
    Vector,
}

impl SecretTypeFilter {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::DeterministicEncryption => "deterministic",
            Self::Vector => "vector",
        }
    }
}

/// A tenant secret's migration status, as a filter spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MigrationFilter {
    Current,
    NeedsMigration,
}

/// A tenant secret's rotation status, as a filter spells it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RotationFilter {
    Current,
    InRotation,
    Archived,
}

impl RotationFilter {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::InRotation => "in-rotation",
            Self::Archived => "archived",
        }
    }
}

/// Which tenant secrets.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct SecretQuery {
    /// Changed at this time or later
    #[param(value_type = Option<String>, format = DateTime)]
    pub(crate) updated_since: Option<Timestamp>,
    /// Made at this time or later
    #[param(value_type = Option<String>, format = DateTime)]
    pub(crate) created_since: Option<Timestamp>,
    /// What their keys are for
    #[param(inline)]
    pub(crate) secret_type: Option<SecretTypeFilter>,
    /// Whether the tenant's primary KMS config wraps them
    #[param(inline)]
    pub(crate) migration_status: Option<MigrationFilter>,
    /// Where they are in their life
    #[param(inline)]
    pub(crate) rotation_status: Option<RotationFilter>,
    /// Part of a tenant's id or a path, or a fingerprint, or the number of a KMS config
    pub(crate) query: Option<String>,
    /// Numbers of secrets, with commas between them: as in the body
    #[serde(default, deserialize_with = "numbers")]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,18}(,[0-9]{1,18}){0,99}$")]
    pub(crate) ids: Option<Vec<i64>>,
    /// Numbers of tags, with commas between them: as in the body
    #[serde(default, deserialize_with = "numbers")]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,18}(,[0-9]{1,18}){0,99}$")]
    pub(crate) tags: Option<Vec<i64>>,
    /// What to sort by
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_column: SecretColumn,
    /// Which way to sort
    #[serde(default)]
    #[param(inline)]
    pub(crate) sort_direction: SortDirection,
    /// Entries of a page; more than 500 are 500
    #[serde(default = "page_size", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 10)]
    pub(crate) page_size: i64,
    /// The page, from 1
    #[serde(default = "first", deserialize_with = "positive")]
    #[param(minimum = 1, maximum = 4_294_967_295_u32, default = 1)]
    pub(crate) page: i64,
}

macro_rules! paged {
    ($($query:ty),*) => {
        $(impl $query {
            /// Which page of them.
            pub(crate) fn paging(&self) -> Paging {
                Paging::new(self.page, self.page_size)
            }
        })*
    };
}

paged!(
    TenantQuery,
    KmsConfigQuery,
    AssignmentQuery,
    TagQuery,
    SecretQuery
);
