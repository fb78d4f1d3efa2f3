//! Cleaning of text that a KMS wrote, before anybody reads it.
//!
//! A KMS may echo what it was sent, and what it was sent is secret. So everything that could be a key, a token or a
//! ciphertext is cut out: a run of [`RUN_CHARS_MIN`] or more characters of the kind that such things are spelt with.
//! Names of keys fall to the same rule.

use std::borrow::Cow;

/// Longest sentence that is passed on, in characters: enough to tell the reason, short enough for any log line.
const SENTENCE_CHARS_MAX: usize = 200;

/// Longest request id that is passed on, in characters: the known forms have 36 to 52.
const REQUEST_ID_CHARS_MAX: usize = 64;

/// Longest code that is passed on, in characters: the longest known ones have 45.
const CODE_CHARS_MAX: usize = 64;

/// From this length on, in characters, a run may be a secret: 24 characters of base64 are 18 bytes.
const RUN_CHARS_MIN: usize = 24;

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

    /// Cleans a sentence.
    pub(crate) fn sentence(text: &str) -> Self {
        Self(Cow::Owned(clean(text, SENTENCE_CHARS_MAX)))
    }

    /// Cleans a request id. A UUID stays as it is.
    pub(crate) fn request_id(id: &str) -> Self {
        Self(Cow::Owned(if is_uuid(id) {
            id.to_owned()
        } else {
            clean(id, REQUEST_ID_CHARS_MAX)
        }))
    }

    /// Cleans a code that we do not know. One that is spelt as codes are stays as it is, although it is long.
    pub(crate) fn code(code: &str) -> Self {
        let letters = code.bytes().all(|byte| byte.is_ascii_alphabetic());
        let ending = ["Exception", "Error", "Fault"]
            .iter()
            .any(|ending| code.ends_with(ending));
        let sound = letters && ending && code.len() <= CODE_CHARS_MAX;
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
fn is_uuid(text: &str) -> bool {
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
        if self.run_chars >= RUN_CHARS_MIN {
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
