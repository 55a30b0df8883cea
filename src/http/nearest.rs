//! The field that a client probably meant by one that does not exist.

/// The names that other APIs use, in lower case without separators, and the field here.
const OTHER_NAMES: [(&str, &str); 39] = [
    ("prompt", "message"),
    ("input", "message"),
    ("content", "message"),
    ("query", "message"),
    ("question", "message"),
    ("text", "message"),
    ("q", "message"),
    ("session", "session_id"),
    ("conversation", "session_id"),
    ("conversationid", "session_id"),
    ("thread", "session_id"),
    ("threadid", "session_id"),
    ("chatid", "session_id"),
    ("user", "user_id"),
    ("enduser", "user_id"),
    ("images", "attachments"),
    ("image", "attachments"),
    ("files", "attachments"),
    ("agentid", "agent"),
    ("assistant", "agent"),
    ("assistantid", "agent"),
    ("modelid", "model"),
    ("options", "settings"),
    ("parameters", "settings"),
    ("maxtokens", "max_output_tokens"),
    ("maxcompletiontokens", "max_output_tokens"),
    ("maxnewtokens", "max_output_tokens"),
    ("numpredict", "max_output_tokens"),
    ("stopsequences", "stop"),
    ("effort", "reasoning_effort"),
    ("reasoning", "include_reasoning"),
    ("jsonschema", "schema"),
    ("outputschema", "response_format"),
    ("responseschema", "response_format"),
    ("mimetype", "media_type"),
    ("base64", "data"),
    ("function", "name"),
    ("idempotencykey", "key"),
    ("pagesize", "limit"),
];

/// Names that look like another field, but mean something that this API does not have.
const NOT_HERE: [&str; 3] = ["topk", "stream", "n"];

/// Returns the candidate that `unknown` probably means. Candidates are whole paths, the nearer objects first; of
/// several that fit equally well the first counts.
pub(super) fn nearest<'a>(unknown: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = plain(unknown);
    if NOT_HERE.contains(&wanted.as_str()) {
        return None;
    }
    let other_name = OTHER_NAMES.iter().find(|(name, _)| *name == wanted);
    let mut best = None;
    for candidate in candidates {
        let name = candidate.rsplit('.').next().unwrap_or(candidate);
        let distance = match other_name {
            Some((_, field)) if *field == name => 0,
            _ => strsim::osa_distance(&plain(name), &wanted),
        };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    // One slip in four letters: more of them make another word.
    best.filter(|(distance, _)| distance * 4 <= wanted.chars().count().max(4))
        .map(|(_, candidate)| candidate)
}

/// A name in lower case without separators, because clients write `maxTokens` and `max-tokens` too.
fn plain(name: &str) -> String {
    let letters = name.chars().filter(|c| !matches!(c, '_' | '-' | ' ' | '.'));
    letters.take(64).flat_map(char::to_lowercase).collect()
}

/// The end of the sentence about an unknown name.
pub(super) fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |field| format!("; did you mean `{field}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_and_a_name_of_another_api_find_their_field() {
        let fields = [
            "message",
            "session_id",
            "store",
            "agent",
            "settings.temperature",
            "settings.top_p",
            "settings.max_output_tokens",
        ];
        for (unknown, field) in [
            ("mesage", Some("message")),
            ("Message", Some("message")),
            ("prompt", Some("message")),
            ("sessionId", Some("session_id")),
            ("sesion_id", Some("session_id")),
            ("temperature", Some("settings.temperature")),
            ("temprature", Some("settings.temperature")),
            ("max_tokens", Some("settings.max_output_tokens")),
            ("maxOutputTokens", Some("settings.max_output_tokens")),
            ("topP", Some("settings.top_p")),
            ("top_k", None),
            ("stream", None),
            ("x", None),
            ("", None),
            ("something_else", None),
            (&"m".repeat(10_000), None),
        ] {
            assert_eq!(nearest(unknown, fields.into_iter()), field, "{unknown:.40}");
        }
    }
}
