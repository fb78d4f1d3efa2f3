//! An EDEK's entries, read where they lie: what a request's path does instead of [`EncryptedDeks`], which copies each field.

use super::{EDEK_BYTES_MAX, InvalidEdek};
#[cfg(doc)]
use super::{EncryptedDek, EncryptedDeks};

/// How deep groups may stand in each other in what we skip. No EDEK has any; 100 is what protobuf libraries allow.
const GROUPS_MAX: usize = 100;

/// [`EncryptedDek`], borrowed, without the tenant id, which nobody reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry<'a> {
    /// See [`EncryptedDek::encrypted_dek_data`].
    pub encrypted_dek_data: &'a [u8],
    /// See [`EncryptedDek::kms_config_id`].
    pub kms_config_id: i32,
    /// See [`EncryptedDek::leased_key_id`].
    pub leased_key_id: i32,
    /// See [`EncryptedDek::leased_key_iv`].
    pub leased_key_iv: &'a [u8],
    /// See [`EncryptedDek::encrypted_leased_key_data`].
    pub encrypted_leased_key_data: &'a [u8],
}

/// The entries of a serialized EDEK, in their order. Read all of them: only the last tells whether it is one. Without any
/// it is none.
///
/// # Errors
/// [`InvalidEdek`], here or from the iterator, in the same cases as [`EncryptedDeks::from_bytes`]; without an entry there
/// is just no item.
pub fn entries(
    bytes: &[u8],
) -> Result<impl Iterator<Item = Result<Entry<'_>, InvalidEdek>>, InvalidEdek> {
    if bytes.len() > EDEK_BYTES_MAX {
        return Err(InvalidEdek::TooLong);
    }
    let mut left = Fields(bytes);
    Ok(std::iter::from_fn(move || {
        loop {
            if left.0.is_empty() {
                return None;
            }
            match left.next_entry() {
                Some(None) => {}
                Some(Some(entry)) => return Some(Ok(entry)),
                None => {
                    left = Fields(&[]);
                    return Some(Err(InvalidEdek::NotProtobuf));
                }
            }
        }
    }))
}

/// Wire types of protobuf.
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const BYTES: u8 = 2;
const GROUP: u8 = 3;
const GROUP_END: u8 = 4;
const FOUR_BYTES: u8 = 5;

/// The fields of a message that have not been read. `None` from any of its functions: it is no such message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads one field of the outer message; gives an entry if it is one.
    fn next_entry(&mut self) -> Option<Option<Entry<'a>>> {
        let (field, wire) = self.key()?;
        if field != 1 {
            self.skip(field, wire, GROUPS_MAX)?;
            return Some(None);
        }
        let mut inner = Self(self.bytes(wire)?);
        let mut entry = Entry::default();
        while !inner.0.is_empty() {
            let (field, wire) = inner.key()?;
            match field {
                1 => entry.encrypted_dek_data = inner.bytes(wire)?,
                2 => entry.kms_config_id = inner.int32(wire)?,
                3 => entry.leased_key_id = inner.int32(wire)?,
                4 => entry.leased_key_iv = inner.bytes(wire)?,
                5 => entry.encrypted_leased_key_data = inner.bytes(wire)?,
                6 => drop(inner.bytes(wire)?),
                _ => inner.skip(field, wire, GROUPS_MAX)?,
            }
        }
        Some(Some(entry))
    }

    fn varint(&mut self) -> Option<u64> {
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = rest;
            return Some(byte.into());
        }
        let number = prost::decode_length_delimiter(&mut self.0).ok()?;
        u64::try_from(number).ok()
    }

    /// A field's number and wire type.
    fn key(&mut self) -> Option<(u32, u8)> {
        let key = u32::try_from(self.varint()?).ok()?;
        let wire = u8::try_from(key & 7).ok()?;
        (key >> 3 > 0).then_some((key >> 3, wire))
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn bytes(&mut self, wire: u8) -> Option<&'a [u8]> {
        if wire != BYTES {
            return None;
        }
        let count = self.varint()?;
        self.take(usize::try_from(count).ok()?)
    }

    fn int32(&mut self, wire: u8) -> Option<i32> {
        if wire != VARINT {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a negative number has all 64 bits on the wire, of which protobuf takes the lower half"
        )]
        let number = self.varint()? as i32;
        Some(number)
    }

    fn skip(&mut self, field: u32, wire: u8, groups: usize) -> Option<()> {
        match wire {
            VARINT => self.varint().map(drop),
            EIGHT_BYTES => self.take(8).map(drop),
            FOUR_BYTES => self.take(4).map(drop),
            BYTES => self.bytes(wire).map(drop),
            GROUP => {
                let groups = groups.checked_sub(1)?;
                loop {
                    let (inner, wire) = self.key()?;
                    if wire == GROUP_END {
                        return (inner == field).then_some(());
                    }
                    self.skip(inner, wire, groups)?;
                }
            }
            _ => None,
        }
    }
}
