//! Keys of ours that a tool's server repeats: some answer with the request, some with their environment.
//!
//! They are taken out of what a model is told, and a file that holds one is not kept. A server that means harm can write
//! them in a way that nobody finds; it knows them anyway, and was given them by whoever runs this gateway.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{File, ToolError, ToolOutput};

/// How short a key may be to be searched for in words: shorter ones are no keys, but words.
const MIN: usize = 8;
/// How short it may be to be searched for in files, which are kept or not, and never changed.
const MIN_IN_FILES: usize = 16;
/// What stands in the place of a key.
const HIDDEN: &str = "[hidden]";

/// Keys, in all the ways in which they are searched for, the longest first.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// What these values hold: themselves, of `Bearer KEY` the key alone, of `Basic …` the password; and each as it would
    /// stand in JSON and in an address.
    pub(super) fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Vec::new();
        for value in values {
            let value = value.trim();
            all.push(value.to_owned());
            let Some((scheme, key)) = value.rsplit_once(' ') else {
                continue;
            };
            all.push(key.to_owned());
            if scheme.eq_ignore_ascii_case("basic")
                && let Ok(plain) = STANDARD.decode(key)
                && let Ok(plain) = String::from_utf8(plain)
            {
                all.extend(plain.split_once(':').map(|(_, password)| password.to_owned()));
                all.push(plain);
            }
        }
        let mut ways: Vec<String> = all.iter().flat_map(|key| ways(key)).collect();
        ways.retain(|way| way.len() >= MIN);
        ways.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        ways.dedup();
        Self(ways)
    }

    /// A text without them.
    pub(super) fn hide(&self, mut text: String) -> String {
        for key in &self.0 {
            if memchr::memmem::find(text.as_bytes(), key.as_bytes()).is_some() {
                text = text.replace(key, HIDDEN);
            }
        }
        text
    }

    /// The beginning of a text without them, nor with the beginning of one at its end.
    pub(super) fn hide_in_beginning(&self, text: String) -> String {
        let mut text = self.hide(text);
        let cut = self.0.iter().filter_map(|key| {
            let begins = (MIN..key.len()).rev().filter_map(|length| key.get(..length));
            let mut cut_here = begins.filter(|begins| text.ends_with(begins));
            cut_here.next().map(str::len)
        });
        if let Some(longest) = cut.max() {
            text.truncate(text.len() - longest);
            text.push_str(HIDDEN);
        }
        text
    }

    /// What a tool gave back, without them.
    ///
    /// # Errors
    /// A file holds one.
    pub(super) fn sift(&self, output: ToolOutput) -> Result<ToolOutput, ToolError> {
        let ToolOutput { content, files } = output;
        let mut sifted = Vec::with_capacity(files.len());
        for file in files {
            let File {
                name,
                media_type,
                bytes,
            } = file;
            let mut long = self.0.iter().filter(|key| key.len() >= MIN_IN_FILES);
            if long.any(|key| memchr::memmem::find(&bytes, key.as_bytes()).is_some()) {
                return Err(ToolError::new(
                    "the answer is a file that repeats a key of this gateway's; it is not passed on",
                ));
            }
            sifted.push(File {
                name: self.hide(name),
                media_type: self.hide(media_type),
                bytes,
            });
        }
        Ok(ToolOutput {
            content: self.hide(content),
            files: sifted,
        })
    }
}

/// Whether a variable, a flag or a parameter of this name is likely to hold a key.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace("author", "");
    let words = [
        "key",
        "token",
        "secret",
        "pass",
        "pwd",
        "auth",
        "credential",
        "private",
        "signature",
        "dsn",
    ];
    words.iter().any(|word| name.contains(word)) || name == "sig"
}

/// A key as it is, and as JSON and addresses write it.
fn ways(key: &str) -> Vec<String> {
    let json = serde_json::Value::from(key).to_string();
    let json = json.get(1..json.len() - 1).unwrap_or_default().to_owned(); // without its quotes
    let slashes = json.replace('/', "\\/"); // as PHP writes it
    let upper = url::form_urlencoded::byte_serialize(key.as_bytes()).collect::<String>();
    let spaces = upper.replace('+', "%20");
    vec![
        key.to_owned(),
        json,
        slashes,
        lower(&upper),
        upper,
        lower(&spaces),
        spaces,
    ]
}

/// The same with its percent-encoding in lower case.
fn lower(encoded: &str) -> String {
    let mut out = String::with_capacity(encoded.len());
    let mut digits = 0;
    for c in encoded.chars() {
        out.push(if digits > 0 { c.to_ascii_lowercase() } else { c });
        digits = if c == '%' { 2 } else { digits.max(1) - 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk/Very+Secret=1 2";

    #[test]
    fn a_key_is_found_in_the_ways_that_servers_write_it() {
        let basic = format!("Basic {}", STANDARD.encode("ada:correct horse"));
        let secrets = Secrets::of([
            &*["Bearer ", &KEY[..16]].concat(),
            KEY,
            &basic,
            "short",
            "a\"quoted\\key",
        ]);
        for (said, told) in [
            ("Authorization: Bearer sk/Very+Secret=1!", "Authorization: [hidden]!"),
            ("key sk/Very+Secret=1.", "key [hidden]."),
            ("sk/Very+Secret=1 2", "[hidden]"),
            (r#"{"k":"sk\/Very+Secret=1 2"}"#, r#"{"k":"[hidden]"}"#),
            ("?k=sk%2FVery%2BSecret%3D1+2&x", "?k=[hidden]&x"),
            ("?k=sk%2fVery%2bSecret%3d1%202&x", "?k=[hidden]&x"),
            ("ada:correct horse", "[hidden]"),
            ("its password is correct horse", "its password is [hidden]"),
            (r#"{"k": "a\"quoted\\key"}"#, r#"{"k": "[hidden]"}"#),
            ("short and sk/Very", "short and sk/Very"),
        ] {
            assert_eq!(secrets.hide(said.to_owned()), told);
        }
        assert_eq!(secrets.hide_in_beginning("k: sk/Very+Se".into()), "k: [hidden]");
        assert_eq!(secrets.hide_in_beginning("k: sk/Very".into()), "k: sk/Very");
        assert_eq!(Secrets::default().hide("x".into()), "x");
    }

    #[test]
    fn a_file_with_a_key_is_not_passed_on_and_its_name_holds_none() {
        let secrets = Secrets::of(["Bearer sk-very-secret-1", "2026-11-21"]);
        let file = |bytes: &'static [u8]| ToolOutput {
            content: "sk-very-secret-1".into(),
            files: vec![File {
                name: "sk-very-secret-1.bin".into(),
                media_type: "x/sk-very-secret-1".into(),
                bytes: bytes.into(),
            }],
        };
        let fine = secrets.sift(file(b"\x00of 2026-11-21")).unwrap();
        assert_eq!(
            (&*fine.content, &*fine.files[0].name, &*fine.files[0].media_type),
            ("[hidden]", "[hidden].bin", "x/[hidden]")
        );
        assert_eq!(&fine.files[0].bytes[..], b"\x00of 2026-11-21");
        assert!(secrets.sift(file(b"\x00\xffsk-very-secret-1\x00")).is_err());
    }

    #[test]
    fn what_holds_a_key_is_told_by_its_name() {
        for name in [
            "OPENAI_API_KEY",
            "GITHUB_TOKEN",
            "PGPASSWORD",
            "sig",
            "x-amz-signature",
            "SENTRY_DSN",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PATH", "HOME", "LANG", "LOG", "units", "GIT_AUTHOR_NAME"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
