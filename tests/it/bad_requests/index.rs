//! Which row, or which story elsewhere, tells of each bad request of the list.
use super::*;

/// Rows of the list of bad requests that are no one request to the byte: the file and the story that tells of each.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "B005",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B006",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B007",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B015",
        "bad_requests/framing",
        "a_length_and_chunks_together_do_not_smuggle_a_second_request",
    ),
    (
        "B023",
        "front_door",
        "who_says_nothing_or_dawdles_over_a_header_is_hung_up_on",
    ),
    ("B024", "front_door", "a_body_that_does_not_come_is_given_up"),
    (
        "B027",
        "front_door",
        "requests_sent_ahead_are_answered_one_by_one_each_for_itself",
    ),
    (
        "B028",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B031",
        "bad_requests/floods",
        "floods_of_http2_frames_cost_their_connection_and_nothing_else",
    ),
    ("B034", "keys", "what_is_not_a_key_gets_one_answer"),
    ("B035", "keys", "what_is_not_a_key_gets_one_answer"),
    ("B041", "keys", "a_key_asks_the_agents_that_are_its"),
    ("B043", "keys", "nobody_sees_or_touches_what_is_anothers"),
    ("B044", "limits/rate", "a_thousand_made_up_addresses_are_one_caller"),
    ("B045", "tickets", "a_page_elsewhere_starts_nothing_and_reads_nothing"),
    ("B046", "tickets", "a_ticket_is_for_one_run_of_whoever_made_it"),
    ("B046", "tickets", "a_ticket_beside_a_key_is_of_the_same_caller"),
    (
        "B046",
        "jwt",
        "a_ticket_ends_with_the_token_that_it_was_made_with_and_its_run_does_not",
    ),
    (
        "B059",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B060",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B061",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B070",
        "bad_requests/limits",
        "every_limit_is_where_the_contract_puts_it",
    ),
    (
        "B076",
        "bad_requests/fields",
        "a_session_id_that_nobody_knows_is_a_new_session_of_the_callers",
    ),
    (
        "B078",
        "bad_requests/fields",
        "a_key_that_belongs_to_another_request_is_refused",
    ),
    (
        "B081",
        "bad_requests/fields",
        "a_message_full_of_other_peoples_syntax_is_just_a_message",
    ),
    (
        "B088",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B089",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B091",
        "bad_requests/artifacts",
        "a_name_is_one_header_line_whatever_is_in_it",
    ),
    (
        "B092",
        "bad_requests/artifacts",
        "a_file_that_a_browser_would_run_is_only_saved",
    ),
    (
        "B093",
        "bad_requests/artifacts",
        "what_stands_in_the_place_of_a_file_is_not_served",
    ),
    ("B094", "artifacts", "parts_and_copies_are_asked_for"),
    (
        "B095",
        "limits/rate",
        "a_burst_of_the_limit_is_fine_and_one_more_is_told_when_to_come",
    ),
    (
        "B096",
        "limits/at_a_time",
        "a_caller_has_so_many_runs_and_others_do_not_mind",
    ),
    (
        "B097",
        "limits/overload",
        "a_full_gateway_refuses_at_once_and_its_fifty_streams_go_on",
    ),
    (
        "B098",
        "bad_requests/sse",
        "cancelling_twice_is_one_cancellation_and_a_completed_run_is_past_it",
    ),
    (
        "B099",
        "bad_requests/http2",
        "over_http2_the_same_requests_get_the_same_answers",
    ),
    (
        "B099",
        "bad_requests/nginx",
        "through_nginx_the_same_requests_get_the_same_answers",
    ),
];

#[test]
fn every_row_of_the_list_is_told_of() {
    let rows = [all(), credentials::keyed_rows()].concat();
    let mut ids = BTreeSet::new();
    for row in &rows {
        assert!(ids.insert(row.id.as_str()), "{} twice", row.id);
    }
    let mut told: BTreeSet<String> = rows
        .iter()
        .filter_map(|row| row.id.split(' ').next())
        .map(str::to_owned)
        .collect();
    for (id, file, story) in ELSEWHERE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{file}.rs"));
        let source = std::fs::read_to_string(path).unwrap();
        let (before, _) = source
            .split_once(&format!("async fn {story}("))
            .unwrap_or_else(|| panic!("{id}: no {story} in {file}"));
        let mark = before
            .lines()
            .rev()
            .take(2)
            .any(|line| line.trim().starts_with("#[tokio::test"));
        assert!(mark, "{id}: {story} in {file} is no story");
        told.insert((*id).to_owned());
    }
    let missing: Vec<String> = (1..=99)
        .map(|n| format!("B{n:03}"))
        .filter(|id| !told.contains(id))
        .collect();
    assert_eq!(missing, [""; 0]);
}
