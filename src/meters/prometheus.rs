//! The meters as Prometheus text 0.0.4, for clients that do not take OpenMetrics. Both look nearly
//! the same, and a parser of the one refuses the other: there a counter's name ends in `_total`
//! also where its type is told, there are no units and no end, and two types have other names.

/// Rewrites OpenMetrics text 1.0.0 as Prometheus text 0.0.4.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    // The help of a family comes before its type, and its name depends on that.
    let mut help = None;
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            help = told.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|told| told.split_once(' ')) {
            let (ending, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(family, _)| *family == name) {
                written.push_str(&format!("# HELP {name}{ending} {}\n", unquoted(help)));
            }
            written.push_str(&format!("# TYPE {name}{ending} {kind}\n"));
        } else if !line.starts_with('#') {
            written.push_str(line);
            written.push('\n');
        }
    }
    written
}

/// A help as 0.0.4 has it, where a quotation mark needs no escape.
fn unquoted(help: &str) -> String {
    help.replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meters::{Format, Meters};

    #[test]
    fn types_and_names_are_those_of_the_older_form() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"# y\"} 3\n\
                    # HELP c_seconds How long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                    c_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_sum 1\nc_seconds_count 1\n\
                    # HELP build What.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n\
                    # HELP d Who \\\"knows\\\".\n# TYPE d unknown\nd 1\n# EOF\n";
        let older = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"# y\"} 3\n\
                     # HELP c_seconds How long.\n# TYPE c_seconds histogram\n\
                     c_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_sum 1\nc_seconds_count 1\n\
                     # HELP build_info What.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
                     # HELP d Who \"knows\".\n# TYPE d untyped\nd 1\n";
        assert_eq!(from_open_metrics(open), older);
    }

    #[test]
    fn every_series_of_the_older_form_belongs_to_a_family_of_a_type_that_it_has() {
        let mut meters = Meters::default();
        meters.expect_relay();
        meters.expect_traces();
        drop(meters.stream(Format::Sse));
        let text = meters.prometheus_text();
        let mut family = ("", "");
        for line in text.lines() {
            if let Some(told) = line.strip_prefix("# TYPE ") {
                family = told.split_once(' ').unwrap();
                assert!(
                    ["counter", "gauge", "histogram", "untyped"].contains(&family.1),
                    "{line}"
                );
            } else if !line.starts_with("# HELP ") {
                let name = line.split(['{', ' ']).next().unwrap();
                let ending = name.strip_prefix(family.0).unwrap_or("?");
                let fits = match family.1 {
                    "histogram" => ["_bucket", "_sum", "_count"].contains(&ending),
                    _ => ending.is_empty(),
                };
                assert!(fits, "{line} in {family:?}");
            }
        }
        assert!(text.contains("# TYPE sluicegate_build_info gauge\n"), "{text}");
        assert!(text.ends_with('\n') && !text.contains("# EOF"));
    }
}
