//! Which story plays which fault of the matrix. Those of upstreams (F01 to F59) are rows of the tables in `faults/`, which name
//! themselves; of agents, clients and the host it is said here. Who renames or removes a story must say here what plays
//! its fault now.

use std::path::Path;

/// A fault, and the stories that play it.
const STORIES: &[(&str, &[&str])] = &[
    // Of upstreams, what is no row: it needs a resolver that is not the machine's.
    (
        "F04",
        &["a_resolver_that_says_nothing_is_a_connection_that_never_comes"],
    ),
    // Rounds, tools, MCP, forms.
    (
        "F60",
        &[
            "a_round_that_breaks_in_the_middle_of_a_call_calls_nothing",
            "a_round_that_is_cut_anywhere_calls_nothing",
        ],
    ),
    (
        "F61",
        &[
            "calls_that_cannot_be_made_are_answered_and_the_run_goes_on",
            "a_call_that_cannot_be_made_gets_an_error_and_the_run_goes_on",
        ],
    ),
    (
        "F62",
        &[
            "calls_that_cannot_be_made_are_answered_and_the_run_goes_on",
            "arguments_that_do_not_fit_do_not_reach_the_server",
        ],
    ),
    (
        "F63",
        &[
            "calls_that_cannot_be_made_are_answered_and_the_run_goes_on",
            "of_many_calls_in_a_round_sixteen_are_made",
        ],
    ),
    (
        "F64",
        &[
            "rounds_end_and_the_last_one_is_words",
            "after_the_last_round_the_model_is_asked_once_more_without_tools",
        ],
    ),
    (
        "F65",
        &[
            "a_tool_in_trouble_costs_its_call",
            "a_tool_that_fails_hangs_or_never_stops_talking_costs_only_its_call",
        ],
    ),
    (
        "F66",
        &[
            "a_tool_does_not_connect_to_what_is_inside",
            "an_address_in_a_url_is_judged_in_every_spelling",
            "of_a_names_addresses_only_the_admitted_are_connected_to",
            "a_redirect_is_not_followed",
        ],
    ),
    (
        "F67",
        &[
            "a_client_that_leaves_closes_the_tools",
            "a_cancel_closes_the_tools_and_answers_their_calls",
        ],
    ),
    (
        "F68",
        &[
            "servers_that_never_begin_keep_nobody_from_working_and_leave_nothing_behind",
            "a_server_that_dies_in_a_call_is_an_error_for_the_model_and_comes_back",
        ],
    ),
    (
        "F69",
        &["a_tool_that_changes_is_off_for_runs_to_come_and_for_those_under_way"],
    ),
    ("F70", &["a_tool_that_a_key_may_not_use_is_refused_to_its_model"]),
    (
        "F71",
        &[
            "an_answer_of_another_form_is_never_passed_for_right",
            "an_answer_that_does_not_fit_twice_is_an_error_and_no_turn",
        ],
    ),
    // Clients.
    (
        "C01",
        &[
            "who_hangs_up_on_json_or_text_closes_the_upstream_at_any_moment",
            "with_a_grace_the_upstream_is_closed_when_it_is_over_and_not_before",
        ],
    ),
    (
        "C02",
        &[
            "who_hangs_up_on_json_or_text_closes_the_upstream_at_any_moment",
            "who_hangs_up_on_sse_closes_the_upstream_if_that_was_asked_for",
        ],
    ),
    (
        "C03",
        &[
            "who_hangs_up_on_json_or_text_closes_the_upstream_at_any_moment",
            "who_hangs_up_on_sse_closes_the_upstream_if_that_was_asked_for",
        ],
    ),
    (
        "C04",
        &[
            "a_client_that_vanishes_without_a_word_is_given_up_in_time_at_any_moment",
            "who_is_there_and_says_nothing_is_not_lost",
        ],
    ),
    (
        "C05",
        &[
            "who_takes_nothing_is_cut_and_the_run_goes_on_as_its_policy_says",
            "who_takes_a_little_at_a_time_is_not_cut",
        ],
    ),
    ("C06", &["who_closes_one_half_is_taken_for_gone"]),
    ("C07", &["a_byte_too_many_hides_a_leaving_for_a_moment_only"]),
    (
        "C08",
        &[
            "a_stream_cut_at_any_place_goes_on_strictly_after_it_through_every_door",
            "who_comes_back_in_time_finds_the_run_going_on",
        ],
    ),
    ("C09", &["every_gateway_gives_the_bytes_that_the_runs_own_gives"]),
    (
        "C10",
        &[
            "a_stream_cut_at_any_place_goes_on_strictly_after_it_through_every_door",
            "what_had_ended_is_told_with_its_number_though_its_log_is_gone",
        ],
    ),
    ("C11", &["a_log_is_replayable_for_its_window_and_then_gone"]),
    ("C12", &["who_drops_before_the_first_token_has_an_id_to_come_back_with"]),
    (
        "C13",
        &[
            "readers_at_different_places_get_the_same_bytes",
            "a_reader_that_leaves_takes_nobody_with_it",
        ],
    ),
    (
        "C14",
        &[
            "while_one_runs_the_others_are_told_which",
            "of_many_at_once_one_gets_the_session_and_the_history_stays_linear",
        ],
    ),
    (
        "C15",
        &[
            "two_at_once_make_one_run",
            "in_the_middle_of_a_run_its_readers_are_told_afterwards",
        ],
    ),
    // The process, its store, its machine.
    (
        "S01",
        &["before_the_first_token_nobody_is_told_anything_but_that_it_was_interrupted"],
    ),
    ("S02", &["in_the_middle_of_a_run_its_readers_are_told_afterwards"]),
    ("S03", &["at_any_moment_it_loses_nothing_that_was_acknowledged"]),
    (
        "S04",
        &[
            "at_any_moment_it_loses_nothing_that_was_acknowledged",
            "what_had_ended_is_told_with_its_number_though_its_log_is_gone",
        ],
    ),
    (
        "S05",
        &[
            "told_to_stop_two_hundred_streams_come_to_one_end_each",
            "every_open_stream_comes_to_one_end_and_it_exits_in_order",
        ],
    ),
    (
        "S06",
        &["a_file_that_somebody_else_locks_is_said_so_before_the_model_is_asked_and_no_turn_is_passed_for_kept"],
    ),
    (
        "S07",
        &["a_full_disk_refuses_runs_keeps_no_half_turn_and_is_found_again_when_there_is_room"],
    ),
    (
        "S08",
        &["a_disk_that_fails_or_cannot_be_written_to_is_said_so_and_nothing_is_lost"],
    ),
    (
        "S09",
        &["a_file_that_is_no_database_of_ours_stops_the_start_and_is_left_alone"],
    ),
    (
        "S10",
        &[
            "a_server_that_restarts_is_waited_for",
            "a_server_that_is_gone_or_silent_is_said_so_in_time_and_is_found_again",
        ],
    ),
    ("S11", &["a_turn_whose_acknowledgement_is_lost_is_written_once"]),
    ("S12", &["gateways_go_on_alone_while_it_is_gone_and_need_no_restart"]),
    ("S13", &["gateways_go_on_alone_while_it_does_not_answer"]),
    (
        "S14",
        &["a_clock_that_jumps_an_hour_ends_nothing_and_disorders_nothing"],
    ),
    (
        "S15",
        &["with_little_memory_runs_are_refused_before_the_machine_ends_the_process"],
    ),
    (
        "S16",
        &["without_file_descriptors_it_waits_with_accepting_and_goes_on_when_there_are_some"],
    ),
    (
        "S17",
        &[
            "a_provider_that_panics_fails_its_run_and_no_other",
            "a_store_that_panics_at_the_end_leaves_no_reader_waiting_and_no_session_held",
        ],
    ),
    (
        "S18",
        &[
            "costs_the_end_and_no_token",
            "that_does_not_answer_is_not_waited_for_for_ever",
        ],
    ),
    (
        "S19",
        &[
            "a_gateway_is_given_up_within_ten_seconds",
            "the_runs_of_a_gateway_that_died_are_interrupted_within_its_lease",
        ],
    ),
    (
        "S20",
        &[
            "a_log_that_nobody_reads_holds_up_no_request_and_no_stop",
            "a_log_that_nobody_takes_drops_lines_and_holds_up_nobody",
        ],
    ),
];

/// The text of every Rust file below.
fn below(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            below(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a file of ours"));
        }
    }
}

#[test]
fn every_fault_has_its_story() {
    let numbers =
        |letter, numbers: std::ops::RangeInclusive<u32>| numbers.map(move |number| format!("{letter}{number:02}"));
    let (root, mut rows) = (Path::new(env!("CARGO_MANIFEST_DIR")), String::new());
    below(&root.join("tests/it/faults"), &mut rows);
    let is_row = |fault: &String| rows.contains(&format!("\"{fault} "));
    let all = numbers('F', 1..=59)
        .filter(|fault| !is_row(fault))
        .chain(numbers('F', 60..=71))
        .chain(numbers('C', 1..=15))
        .chain(numbers('S', 1..=20));
    let due: Vec<_> = all.collect();
    let listed: Vec<_> = STORIES.iter().map(|(fault, _)| *fault).collect();
    assert_eq!(listed, due);

    let mut text = String::new();
    below(&root.join("tests/it"), &mut text);
    below(&root.join("src"), &mut text);
    // A story is a function right below its mark.
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_story = |name: &str| {
        let defined = |line: &str| {
            line.strip_prefix("async ")
                .unwrap_or(line)
                .strip_prefix("fn ")
                .is_some_and(|rest| rest.starts_with(&format!("{name}(")))
        };
        let places = lines.iter().enumerate().filter(|(_, line)| defined(line));
        let marked = |at: usize| {
            lines[at.saturating_sub(2)..at]
                .iter()
                .any(|line| line.starts_with("#[tokio::test") || *line == "#[test]")
        };
        places.map(|(at, _)| at).any(marked)
    };
    let missing: Vec<_> = STORIES
        .iter()
        .filter(|(_, stories)| stories.is_empty() || !stories.iter().all(|name| is_story(name)))
        .collect();
    assert!(missing.is_empty(), "without a story of that name: {missing:#?}");
    assert!(!is_story("a_story_that_nobody_wrote"));
}
