//! The XML of AWS's query protocol, as STS and the front ends before KMS write it.

use std::borrow::Cow;

use quick_xml::{Reader, events::Event};

/// Deepest nesting that is followed, in elements: real answers have 4.
const DEPTH_MAX: usize = 16;

/// Gives every piece of text to `take`, with the local names of the elements around it, outermost first. One text may
/// come in several pieces.
///
/// `None` if the root is none of `roots`, or if this is not the kind of XML that AWS writes: entities of its own making,
/// or references to other files, are not.
pub(super) fn walk<'a>(
    body: &'a [u8],
    roots: &[&str],
    mut take: impl FnMut(&[String], Cow<'a, str>),
) -> Option<()> {
    let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
    let mut path: Vec<String> = Vec::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => {
                path.push(tag.local_name().as_ref().to_owned());
                let root = path.first().map_or("", String::as_str);
                if path.len() > DEPTH_MAX || !roots.contains(&root) {
                    return None;
                }
            }
            Event::End(_) => {
                path.pop();
            }
            Event::Text(content) => take(&path, content.xml10_content()),
            Event::CData(content) => take(&path, content.xml10_content()),
            Event::GeneralRef(entity) => {
                let text = match entity.resolve_char_ref().ok()? {
                    Some(char) => Cow::Owned(char.to_string()),
                    None => Cow::Borrowed(quick_xml::escape::resolve_xml_entity(
                        &entity.xml10_content(),
                    )?),
                };
                take(&path, text);
            }
            Event::DocType(_) => return None,
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => return path.is_empty().then_some(()),
        }
    }
}
