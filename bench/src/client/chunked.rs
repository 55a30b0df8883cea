//! Takes HTTP/1.1's chunked framing off, split anywhere, and knows whether the last chunk was there.

use anyhow::{Result, bail, ensure};

/// Where in the framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the size line; whether a digit was seen and whether an extension began.
    Size {
        size: u64,
        digits: u8,
        extension: bool,
    },
    /// In a chunk's data, so many bytes left.
    Data(u64),
    /// At the line break after a chunk's data.
    Break,
    /// In the trailer; whether its line has bytes.
    Trailer {
        empty: bool,
    },
    Done,
}

/// The state of one chunked body.
#[derive(Debug)]
pub struct Chunked(At);

impl Default for Chunked {
    fn default() -> Self {
        Self(At::SIZE)
    }
}

impl At {
    const SIZE: Self = Self::Size {
        size: 0,
        digits: 0,
        extension: false,
    };
}

impl Chunked {
    /// Whether the last chunk and the end of the trailer were read: the body is whole.
    #[must_use]
    pub fn done(&self) -> bool {
        self.0 == At::Done
    }

    /// Gives the data in `bytes` to `sink`, piece by piece, and returns how many bytes belonged to this body.
    ///
    /// # Errors
    /// When the framing is broken, or `sink` refuses.
    pub fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.done() {
            if let At::Data(left) = self.0 {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                sink(&bytes[at..at + here])?;
                at += here;
                let left = left - here as u64;
                self.0 = if left == 0 { At::Break } else { At::Data(left) };
            } else {
                self.0 = self.0.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }
}

impl At {
    /// One byte of framing further.
    fn after(self, byte: u8) -> Result<Self> {
        Ok(match (self, byte) {
            (
                Self::Size {
                    size: 0, digits: 1.., ..
                },
                b'\n',
            ) => Self::Trailer { empty: true },
            (Self::Size { size, digits: 1.., .. }, b'\n') => Self::Data(size),
            (Self::Size { digits: 1.., .. } | Self::Break | Self::Trailer { .. }, b'\r') => self,
            (
                Self::Size {
                    size,
                    digits: digits @ 1..,
                    extension,
                },
                _,
            ) if extension || byte == b';' => Self::Size {
                size,
                digits,
                extension: true,
            },
            (
                Self::Size {
                    size,
                    digits,
                    extension: false,
                },
                _,
            ) => {
                ensure!(digits < 15, "a chunk's size has too many digits");
                let Some(digit) = char::from(byte).to_digit(16) else {
                    bail!("no chunk size: byte {byte:#04x}")
                };
                Self::Size {
                    size: size * 16 + u64::from(digit),
                    digits: digits + 1,
                    extension: false,
                }
            }
            (Self::Break, b'\n') => Self::SIZE,
            (Self::Trailer { empty: true }, b'\n') => Self::Done,
            (Self::Trailer { empty: false }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
            _ => bail!("broken chunk framing: byte {byte:#04x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<(String, bool, usize)> {
        let (mut chunked, mut text, mut used) = (Chunked::default(), Vec::new(), 0);
        for piece in pieces {
            used += chunked.take(piece, |data| {
                text.extend_from_slice(data);
                Ok(())
            })?;
        }
        Ok((String::from_utf8(text)?, chunked.done(), used))
    }

    #[test]
    fn a_body_split_anywhere_is_the_same_body() {
        let wire = b"5\r\nHello\r\n00c;name=v\r\n, wide world\r\n0\r\nTrail: er\r\n\r\nHTTP/1.1";
        for at in 0..wire.len() {
            let (head, tail) = wire.split_at(at);
            assert_eq!(
                read(&[head, tail]).unwrap(),
                ("Hello, wide world".into(), true, wire.len() - 8),
                "{at}"
            );
        }
    }

    #[test]
    fn a_body_without_the_last_chunk_is_not_done() {
        assert!(!read(&[b"5\r\nHello\r\n"]).unwrap().1);
        assert!(!read(&[b"5\r\nHello\r\n0\r\n"]).unwrap().1);
        assert!(!read(&[b"5\r\nHel"]).unwrap().1);
    }

    #[test]
    fn broken_framing_is_refused() {
        for wrong in [&b"x\r\n"[..], b"\r\n", b"3\r\nabcd", b"1111111111111111\r\n"] {
            assert!(read(&[wrong]).is_err(), "{:?}", String::from_utf8_lossy(wrong));
        }
    }
}
