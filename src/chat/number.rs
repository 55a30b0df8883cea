//! Integers that 64 bits cannot hold: the JSON library reads them as floats, and their digits are lost.

/// How many characters of such an integer are shown.
const SHOWN: usize = 40;

/// Returns the first integer in a JSON text that does not fit into 64 bits, shortened. Numbers with
/// a fraction or an exponent are floats by their own spelling and are not looked at.
#[must_use]
pub fn oversized_integer(json: &str) -> Option<String> {
    let bytes = json.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let in_number = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = bytes[at..].iter().take_while(|b| in_number(b)).count();
                let number = &json[at..at + length];
                let is_integer = !number.contains(['.', 'e', 'E']);
                if is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Some(shortened(number));
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    None
}

/// Where a string ends whose first character is at `at`: the position behind its closing quote.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[at.min(bytes.len())..]) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

fn shortened(number: &str) -> String {
    match number.get(..SHOWN) {
        Some(beginning) if number.len() > SHOWN => format!("{beginning}…"),
        _ => number.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integers_that_64_bits_cannot_hold_are_found() {
        for fine in [
            "{}",
            "",
            "18446744073709551615",
            "-9223372036854775808",
            r#"{"a":"1234567890123456789012345","b\"123456789012345678901234":1.5}"#,
            r#"["\\", 12345678901234567890123.0, 1e99, -1E+30]"#,
            r#""unclosed 99999999999999999999"#,
            "\"\\",
        ] {
            assert_eq!(oversized_integer(fine), None, "{fine}");
        }
        for (json, found) in [
            ("18446744073709551616", "18446744073709551616"),
            ("[-9223372036854775809]", "-9223372036854775809"),
            (
                r#"{"a":{"b":["\"",1,1234567890123456789012345]}}"#,
                "1234567890123456789012345",
            ),
        ] {
            assert_eq!(oversized_integer(json).as_deref(), Some(found));
        }
        let long = oversized_integer(&"9".repeat(1_000)).unwrap();
        assert_eq!(long, format!("{}…", "9".repeat(SHOWN)));
    }
}
