//! Base64 in the standard alphabet, on the vectors that the processor has.

use std::sync::LazyLock;

use base64::engine::{DecodePaddingMode, general_purpose::GeneralPurposeConfig};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Engine = base64::engine::GeneralPurpose;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Engine = base64::engine::simd::Simd;

/// Writes padding; reads with and without. Bits that no encoder leaves behind are an error.
pub(crate) static BASE64: LazyLock<Engine> = LazyLock::new(|| {
    let config = GeneralPurposeConfig::new()
        .with_encode_padding(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Engine::new(&base64::alphabet::STANDARD, config);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Engine::standard(config)
});
