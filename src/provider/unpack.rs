//! An error's body that came packed although it was asked for plain: some proxies pack whatever they say themselves.

use std::io::Read;

use flate2::read::{GzDecoder, ZlibDecoder};

/// The body as it was before it was packed by `coding`, `limit` bytes of it at most; what cannot be unpacked is left as
/// it is. A body that was cut is unpacked as far as it came.
#[must_use]
pub fn unpacked(coding: &str, body: Vec<u8>, limit: usize) -> Vec<u8> {
    let read = |decoder: &mut dyn Read| {
        let mut plain = Vec::new();
        let _ = decoder.take(limit as u64).read_to_end(&mut plain); // what came is what counts
        plain
    };
    match coding {
        "gzip" | "x-gzip" => read(&mut GzDecoder::new(&body[..])),
        "deflate" => read(&mut ZlibDecoder::new(&body[..])),
        _ => body,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};

    use super::*;

    #[test]
    fn a_packed_body_is_read_and_a_bomb_is_not_set_off() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(b"{\"error\":1}").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(unpacked("gzip", gzip.clone(), 64), b"{\"error\":1}");
        assert_eq!(unpacked("gzip", gzip.clone(), 4), b"{\"er");
        assert_eq!(unpacked("gzip", gzip[..gzip.len() - 9].to_vec(), 64), b"{\"error\":1}");
        assert_eq!(unpacked("br", gzip.clone(), 64), gzip, "what is not known is left");
        assert_eq!(unpacked("gzip", b"<html>".to_vec(), 64), b"");

        let mut bomb = ZlibEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![b'0'; 10 << 20]).unwrap();
        let plain = unpacked("deflate", bomb.finish().unwrap(), 64 << 10);
        assert_eq!(plain.len(), 64 << 10);
        assert!(plain.capacity() <= 128 << 10, "{}", plain.capacity());
    }
}
