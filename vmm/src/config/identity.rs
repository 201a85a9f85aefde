//! What the machine is called, checked.

use api_client::config::PlatformConfig;

use super::ConfigError;
use crate::boot::Identity;

/// The tables number strings with a byte.
const MAX_STRINGS: usize = 255;

pub(super) fn identity(platform: Option<&PlatformConfig>) -> Result<Identity, ConfigError> {
    let Some(platform) = platform else {
        return Ok(Identity::default());
    };
    let text = |value: &Option<String>| value.as_deref().map(checked).transpose();
    let oem_strings = platform
        .oem_strings
        .iter()
        .flatten()
        .map(|value| checked(value))
        .collect::<Result<Vec<_>, _>>()?;
    if oem_strings.len() > MAX_STRINGS {
        return Err(ConfigError::OemStrings(oem_strings.len()));
    }
    Ok(Identity {
        serial_number: text(&platform.system_serial_number)?,
        uuid: platform.system_uuid.as_deref().map(uuid).transpose()?,
        manufacturer: text(&platform.system_manufacturer)?,
        product_name: text(&platform.system_product_name)?,
        version: text(&platform.system_version)?,
        family: text(&platform.system_family)?,
        sku_number: text(&platform.system_sku_number)?,
        asset_tag: text(&platform.chassis_asset_tag)?,
        oem_strings,
    })
}

/// A zero byte would end the string early, and an empty one the whole list.
fn checked(text: &str) -> Result<String, ConfigError> {
    if text.is_empty() || text.contains('\0') {
        return Err(ConfigError::PlatformString(text.into()));
    }
    Ok(text.into())
}

/// 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
fn uuid(text: &str) -> Result<[u8; 16], ConfigError> {
    let invalid = || ConfigError::Uuid(text.into());
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digits = groups.concat();
    if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid());
    }
    let number = u128::from_str_radix(&digits, 16).map_err(|_| invalid())?;
    Ok(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_read_in_its_usual_form_only() {
        let bytes = uuid("00112233-4455-6677-8899-AAbbccddeeff").unwrap();
        assert_eq!(bytes[..3], [0, 0x11, 0x22]);
        assert_eq!(bytes[10..], [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        for wrong in [
            "",
            "00112233445566778899aabbccddeeff",
            "+0112233-4455-6677-8899-aabbccddeeff",
        ] {
            assert_eq!(uuid(wrong), Err(ConfigError::Uuid(wrong.into())));
        }
    }

    #[test]
    fn strings_that_would_break_the_table_are_refused() {
        for wrong in ["", "a\0b"] {
            let platform = PlatformConfig {
                oem_strings: Some(vec!["fine".into(), wrong.into()]),
                ..PlatformConfig::default()
            };
            let error = identity(Some(&platform)).unwrap_err();
            assert_eq!(error, ConfigError::PlatformString(wrong.into()));
        }
    }
}
