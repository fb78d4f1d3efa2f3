//! Cleaning of text that a KMS wrote, before anybody reads it.
//!
//! A KMS may echo what it was sent, and what it was sent is secret. So everything that could be a key, a token or a
//! ciphertext is cut out: a run of [`RUN_CHARS_MIN`] or more characters of the kind that such things are spelt with.
//! Names of keys fall to the same rule.

use std::borrow::Cow;

/// Longest sentence that is passed on, in characters: enough to tell the reason, short enough for any log line.
const SENTENCE_CHARS_MAX: usize = 200;

/// Longest request id that is passed on, in characters: a UUID has 36.
const REQUEST_ID_CHARS_MAX: usize = 36;

/// Longest code that is passed on, in characters: the longest known ones have 45.
const CODE_CHARS_MAX: usize = 64;

/// From this length on, in characters, a run may be a secret: 24 characters of base64 are 18 bytes.
const RUN_CHARS_MIN: usize = 24;

/// Words that are longer and yet no secrets: the permissions that Google names where they are missing.
const KNOWN: [&str; 2] = [
    "cloudkms.cryptoKeyVersions.useToEncrypt",
    "cloudkms.cryptoKeyVersions.useToDecrypt",
];

/// What stands where something was cut out.
const CUT: &str = "[cut]";

/// Text that anybody may read: ours, or a KMS's after cleaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clean(Cow<'static, str>);

impl Clean {
    /// Takes words of our own.
    pub(crate) const fn ours(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// Takes words of our own that were put together at run time.
    pub(crate) const fn ours_made(text: Cow<'static, str>) -> Self {
        Self(text)
    }

    /// Cleans a sentence.
    pub(crate) fn sentence(text: &str) -> Self {
        Self(Cow::Owned(clean(text, SENTENCE_CHARS_MAX)))
    }

    /// Takes a request id that is a UUID, or too short and plain to be anything else; others are worth nothing mangled.
    pub(crate) fn request_id(id: &str) -> Option<Self> {
        let sound = is_uuid(id) || (!id.is_empty() && clean(id, REQUEST_ID_CHARS_MAX) == id);
        sound.then(|| Self(Cow::Owned(id.to_owned())))
    }

    /// Takes words of our own around an id that is a UUID. `None` if it is not one.
    pub(crate) fn naming(before: &'static str, id: &str, after: &'static str) -> Option<Self> {
        is_uuid(id).then(|| Self(Cow::Owned(format!("{before}{id}{after}"))))
    }

    /// Cleans a code that we do not know. One that is spelt as codes are, `InSuchWaysException` or `IN_SUCH_WAYS`, stays as
    /// it is, although it is long.
    pub(crate) fn code(code: &str) -> Self {
        let letters = code.bytes().all(|byte| byte.is_ascii_alphabetic());
        let ending = ["Exception", "Error", "Fault"]
            .iter()
            .any(|ending| code.ends_with(ending));
        let capitals = code
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        let sound = (letters && ending || capitals) && code.len() <= CODE_CHARS_MAX;
        Self(Cow::Owned(if sound {
            code.to_owned()
        } else {
            clean(code, CODE_CHARS_MAX)
        }))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Itself, unless nothing was left.
    pub(crate) fn non_empty(self) -> Option<Self> {
        (!self.0.is_empty()).then_some(self)
    }
}

/// `text` in one printable line of at most `chars_max` characters, without anything that could be a secret.
fn clean(text: &str, chars_max: usize) -> String {
    let mut cleaner = Cleaner::default();
    for char in text.chars() {
        cleaner.push(char);
        // Only whole runs are judged, so that the cut at the end cannot shorten a secret below the limit.
        if cleaner.run_chars == 0 && cleaner.done_chars > chars_max {
            break;
        }
    }
    cleaner.finish(chars_max)
}

/// Eight, four, four, four and twelve hexadecimal digits.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[derive(Default)]
struct Cleaner {
    /// What has been judged, and after it the current run.
    out: String,
    /// Length of the judged part of `out`, in bytes and in characters.
    done_bytes: usize,
    done_chars: usize,
    /// Characters of the current run that count. Blanks that may be a line break inside a secret do not.
    run_chars: usize,
    /// Whether the last thing in `out` is a blank.
    blank: bool,
}

impl Cleaner {
    fn push(&mut self, char: char) {
        if is_token(char) {
            self.out.push(char);
            self.run_chars += 1;
            self.blank = false;
        } else if is_invisible(char) {
            // Does not end a run: a long secret is often broken into lines.
            self.push_blank();
        } else {
            self.end_run();
            if char == ' ' {
                self.push_blank();
            } else {
                self.out.push(char);
                self.blank = false;
            }
            self.end_run();
        }
    }

    fn push_blank(&mut self) {
        if !self.blank && !self.out.is_empty() {
            self.out.push(' ');
            self.blank = true;
        }
    }

    /// Judges the current run.
    fn end_run(&mut self) {
        let run = self.out.get(self.done_bytes..).unwrap_or_default().trim();
        if self.run_chars >= RUN_CHARS_MIN && !KNOWN.contains(&run) {
            self.out.truncate(self.done_bytes);
            self.out.push_str(CUT);
            if self.blank {
                self.out.push(' ');
            }
        }
        let judged = self.out.get(self.done_bytes..).unwrap_or_default();
        self.done_chars += judged.chars().count();
        self.done_bytes = self.out.len();
        self.run_chars = 0;
    }

    fn finish(mut self, chars_max: usize) -> String {
        self.end_run();
        if let Some((end, _)) = self.out.char_indices().nth(chars_max) {
            self.out.truncate(end);
        }
        self.out.truncate(self.out.trim_end().len());
        self.out
    }
}

/// The characters of base64 in both alphabets, of hexadecimal numbers, and of tokens, also when escaped for a URL or for
/// JSON once more.
fn is_token(char: char) -> bool {
    char.is_ascii_alphanumeric()
        || matches!(char, '+' | '/' | '=' | '-' | '_' | '.' | '~' | '%' | '\\')
}

/// Characters that print as nothing, or change how others print.
fn is_invisible(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sentence(text: &str) -> String {
        Clean::sentence(text).as_str().to_owned()
    }

    #[test]
    fn ordinary_sentences_stay_as_they_are() {
        let sentences = [
            "Alias arn:aws:kms:us-east-1:111122223333:alias/none is not found.",
            "User: arn:aws:iam::111122223333:user/u is not authorized to perform: kms:Encrypt",
            "Signature expired: 20260115T101530Z is now earlier than 20260115T104500Z (20260115T105000Z - 5 min.)",
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
            "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied (or it may not exist).",
            "Schlüssel „köln“ → gesperrt 🔒",
            "",
        ];
        for text in sentences {
            assert_eq!(sentence(text), text);
        }
    }

    #[test]
    fn what_could_be_a_secret_is_cut_out() {
        let cases = [
            (
                "key AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= ok",
                "key [cut] ok",
            ),
            ("key=000102030405060708090a0b0c0d0e0f;", "[cut];"),
            ("0123456789abcdef01234567", "[cut]"),
            ("0123456789abcdef0123456", "0123456789abcdef0123456"),
            (
                "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln!",
                "token [cut]!",
            ),
            (
                "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab is disabled.",
                "arn:aws:kms:us-east-1:111122223333:[cut] is disabled.",
            ),
            (
                "escaped AAEC%2BwQF%2FgcI%2BQoL%2FA0O%2BxAR twice",
                "escaped [cut] twice",
            ),
            (
                "broken AAECAwQFBgcICQoL\r\nDA0ODxAREhMU\r\nFRYX off",
                "broken [cut] off",
            ),
            (
                "zero AAECAwQFBgc\u{200b}ICQoLDA0ODxAREhM width",
                "zero [cut] width",
            ),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[cut]"),
            (
                "xcloudkms.cryptoKeyVersions.useToDecrypt cloudkms.cryptoKeyVersions.useToDecrypt",
                "[cut] cloudkms.cryptoKeyVersions.useToDecrypt",
            ),
            (
                "two AAECAwQFBgcICQoLDA0ODxAREhM,AAECAwQFBgcICQoLDA0ODxAREhM",
                "two [cut],[cut]",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(sentence(text), expected);
        }
    }

    #[test]
    fn a_sentence_is_one_line_of_printable_text() {
        assert_eq!(
            sentence(" a\r\n\tb\u{0}\u{1b}[31mc \u{2028} d\u{202e} e  f \n"),
            "a b [31mc d e f"
        );
        assert_eq!(sentence("\r\n\u{feff} "), "");
    }

    #[test]
    fn a_long_sentence_ends_at_200_characters_and_not_inside_a_secret() {
        assert_eq!(sentence(&"ä ".repeat(300)), "ä ".repeat(100).trim_end());
        let text = format!("{}{}", "x ".repeat(95), "A".repeat(50_000));
        assert_eq!(sentence(&text), format!("{}[cut]", "x ".repeat(95)));
        let text = format!("{}{}", "x ".repeat(98), "A".repeat(24));
        assert_eq!(sentence(&text), format!("{}[cut", "x ".repeat(98)));
    }

    #[test]
    fn request_ids_and_codes_keep_their_known_forms() {
        let id =
            |text| Clean::request_id(text).map_or("none".to_owned(), |id| id.as_str().to_owned());
        assert_eq!(
            id("0a1b2c3d-0000-4000-8000-0123456789AB"),
            "0a1b2c3d-0000-4000-8000-0123456789AB"
        );
        assert_eq!(id("r-1"), "r-1");
        for other in [
            "0a1b2c3d00004000800000123456789AB",
            "",
            "a\nb",
            &"r ".repeat(30),
        ] {
            assert_eq!(id(other), "none");
        }
        let code = |text| Clean::code(text).as_str().to_owned();
        let long = "CloudHsmClusterInvalidConfigurationException";
        assert_eq!(code(long), long);
        assert_eq!(code("0123456789abcdef01234567Exception"), "[cut]");
        let long = "LOCATION_ORG_POLICY_VIOLATED";
        assert_eq!(code(long), long);
        assert_eq!(code("LOCATION_ORG_POLICY_VIOLATED7"), "[cut]");
        assert_eq!(code("Brand New\n"), "Brand New");
    }

    proptest! {
        #[test]
        fn no_secret_survives(
            secret in prop_oneof![
                "[A-Za-z0-9+/]{23,120}={0,2}".prop_filter("long enough", |secret| secret.len() >= 24),
                "[A-Za-z0-9_-]{24,120}",
                "[0-9a-f]{24,128}",
                "[A-Za-z0-9_-]{8,40}\\.[A-Za-z0-9_-]{8,40}\\.[A-Za-z0-9_-]{8,40}",
            ],
            before in "(.|\\PC){0,220}",
            after in "(.|\\PC){0,60}",
        ) {
            let text = format!("{before}{secret}{after}");
            for clean in [Some(Clean::sentence(&text)), Clean::request_id(&text)].iter().flatten() {
                let clean = clean.as_str();
                prop_assert!(clean.chars().count() <= SENTENCE_CHARS_MAX);
                prop_assert!(!clean.contains(|char: char| char.is_control()));
                // Not even a piece of it, unless the piece stood in the text around it.
                for piece in secret.as_bytes().windows(9) {
                    let piece = std::str::from_utf8(piece).unwrap();
                    prop_assert!(!clean.contains(piece) || before.contains(piece) || after.contains(piece));
                }
            }
        }
    }
}
