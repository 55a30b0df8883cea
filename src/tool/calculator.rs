//! Sums, by `fend-core`: exact where that can be, with units, and a sum alone. No rates of exchange, no dice, no date of
//! today, nothing that is remembered.
//!
//! Expressions come from a model, so what could take the process along is refused before fend sees it: functions
//! (one that calls itself ends the stack), shifts to the left and dice (neither asks whether it should stop).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{Tool, ToolContext, ToolError, ToolOutput};
use crate::chat::ToolDefinition;

/// How long an expression may be, in characters.
const MAX_EXPRESSION: usize = 1_000;
/// How much of a result is given, in characters.
const MAX_RESULT: usize = 10_000;
/// How long one may be worked on.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much later it is given up even if it does not stop by itself.
const GRACE: Duration = Duration::from_secs(1);
/// The stack for the parser, which calls itself for every parenthesis: 1,000 of them use 28 MiB without optimisation.
/// What is not used is not taken from the machine.
const STACK: usize = 64 << 20;
/// What fend's functions of floats give where the true value is larger: wrong, so not given.
const SATURATED: &str = "18446744073709551616";

/// The tool.
pub(super) fn tool() -> Arc<dyn Tool> {
    Arc::new(Calculator {
        definition: ToolDefinition {
            name: "calculator".into(),
            description: "Computes an expression exactly or to ten digits: + - * / ^ mod, parentheses, sqrt, ln, log10, \
                sin, factorials, percentages (\"12% of 250\"), units (\"5 km in miles\", \"72 F to C\"), bases (\"255 to \
                hex\"), \"to 20 dp\". A point is the decimal sign. \"%\" is a hundredth: for 10 % more write 200 * 1.1. \
                Currencies, dates and random numbers are not known."
                .into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "description": "For example (17 * 23) / 4", "maxLength": MAX_EXPRESSION}
                },
                "required": ["expression"],
                "additionalProperties": false
            }),
        },
    })
}

struct Calculator {
    definition: ToolDefinition,
}

impl Tool for Calculator {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        _context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        let expression = arguments.get("expression").and_then(Value::as_str).unwrap_or_default();
        Box::pin(compute(expression))
    }
}

/// Computes it on a thread of its own. Dropping this stops the thread.
async fn compute(expression: &str) -> Result<ToolOutput, ToolError> {
    let expression = expression.trim().to_owned();
    admit(&expression)?;
    let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let watch = Watch {
        dropped: Arc::clone(&stop.0),
        deadline: Instant::now() + PATIENCE,
    };
    let work = tokio::task::spawn_blocking(move || {
        // A thread of the pool has too small a stack; it waits for one that has enough, so that the pool still counts.
        let worker = std::thread::Builder::new()
            .name("calculator".into())
            .stack_size(STACK)
            .spawn(move || evaluate(&expression, &watch));
        match worker.map(std::thread::JoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("The calculator cannot compute this expression.".into()),
            Err(_) => Err("The calculator has no room to compute now; try again.".into()),
        }
    });
    let result = match tokio::time::timeout(PATIENCE + GRACE, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("The calculator cannot compute this expression.".into()),
        Err(_) => Err(too_long()),
    };
    drop(stop);
    result.map(|text| ToolOutput::text(cut(text))).map_err(ToolError::new)
}

/// Refuses what fend must not see.
fn admit(expression: &str) -> Result<(), ToolError> {
    if expression.is_empty() {
        return Err(ToolError::new("There is no expression to compute."));
    }
    if expression.chars().count() > MAX_EXPRESSION {
        return Err(ToolError::new(format!(
            "The expression is longer than {MAX_EXPRESSION} characters."
        )));
    }
    if expression.contains([':', '\\', 'λ', '@']) || expression.contains("=>") {
        return Err(ToolError::new(
            "The calculator computes expressions; functions and attributes cannot be defined in them.",
        ));
    }
    if expression.contains("<<") {
        return Err(ToolError::new("Instead of a << b, write a * 2^b."));
    }
    let bytes = expression.as_bytes();
    for word in expression.split(|c: char| !c.is_ascii_alphanumeric()) {
        let dice = word
            .as_bytes()
            .windows(2)
            .any(|w| w[0] == b'd' && w[1].is_ascii_digit());
        if dice && !word.starts_with("0x") {
            return Err(ToolError::new("The calculator does not throw dice."));
        }
    }
    for (at, _) in expression.match_indices(',') {
        let before = at > 0 && bytes[at - 1].is_ascii_digit();
        let after = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if before && after > 0 && after != 3 {
            return Err(ToolError::new(
                "A comma groups thousands here (1,000); the decimal sign is a point (1.5).",
            ));
        }
    }
    Ok(())
}

/// Computes it here and now.
fn evaluate(expression: &str, watch: &Watch) -> Result<String, String> {
    // A new context each time: without a source of random numbers, without rates, without what others stored.
    let ask = |expression: &str| {
        fend_core::evaluate_with_interrupt(expression, &mut fend_core::Context::new(), watch)
            .map(|result| result.get_main_result().to_owned())
    };
    let result = match ask(expression) {
        Ok(result) if result.is_empty() => return Err("The expression has no value.".into()),
        Ok(result) => result,
        Err(_) if watch.over() => return Err(too_long()),
        Err(why) => return Err(format!("The calculator says: {}.", cut(why))),
    };
    if result.contains(SATURATED) && result.starts_with("approx.") {
        return Err("The result is too large for this function.".into());
    }
    // Ten digits after the point are none at all of a small number; then ten that count.
    if result.starts_with("approx. 0.000") || result.starts_with("approx. -0.000") {
        let precise = ask(&format!("({expression}) to 10 sf"));
        return Ok(precise.unwrap_or(result));
    }
    Ok(result)
}

fn too_long() -> String {
    format!(
        "The result would take longer than {} s to compute; the numbers are too large.",
        PATIENCE.as_secs()
    )
}

/// As much of a text as is given, and whether that is all.
fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_RESULT) {
        Some((end, _)) => format!(
            "{}… (cut: the first {MAX_RESULT} of {} characters)",
            &text[..end],
            text.chars().count()
        ),
        None => text,
    }
}

/// When to stop computing; fend asks often.
struct Watch {
    dropped: Arc<AtomicBool>,
    deadline: Instant,
}

impl Watch {
    fn over(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }
}

impl fend_core::Interrupt for Watch {
    fn should_interrupt(&self) -> bool {
        self.over()
    }
}

/// Stops the computing when nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn says(expression: &str) -> String {
        match compute(expression).await {
            Ok(output) => output.content,
            Err(why) => format!("error: {why}"),
        }
    }

    #[tokio::test]
    async fn it_says_what_a_person_expects() {
        for (expression, expected) in [
            ("0.1+0.2", "0.3"),
            ("17 * 23", "391"),
            ("17 × 23", "391"),
            ("2**8", "256"),
            ("1,000 + 1", "1001"),
            ("1/3", "approx. 0.3333333333"),
            ("sqrt(2)", "approx. 1.4142135624"),
            ("sqrt(16)", "4"),
            ("12% of 250", "30"),
            ("2^100", "1267650600228229401496703205376"),
            ("5 km in miles", "approx. 3.1068559612 miles"),
            ("20 C to F", "68 °F"),
            ("7 mod 3", "1"),
            ("255 to hex", "ff"),
            ("0x1d2", "0x1d2"),
            ("1/1000003", "approx. 0.000000999997"),
            ("1/3 to 3 dp", "approx. 0.333"),
            ("x = 5; x * 2", "10"),
        ] {
            assert_eq!(says(expression).await, expected, "{expression}");
        }
    }

    #[tokio::test]
    async fn what_is_no_sum_is_a_sentence() {
        for (expression, part) in [
            ("", "no expression"),
            ("1/0", "division by zero"),
            ("hello", "unknown identifier 'hello'"),
            ("(", "has no value"),
            ("1,5 + 1", "decimal sign is a point"),
            ("100 USD in EUR", "exchange rates are not available"),
            ("roll d6", "does not throw dice"),
            ("1000d1000", "does not throw dice"),
            ("today", "current date"),
            ("(x: x x) (x: x x)", "cannot be defined"),
            ("f = \\x.x", "cannot be defined"),
            ("1 << 10^12", "a * 2^b"),
            ("cosh(50)", "too large for this function"),
            (&"1".repeat(1001), "longer than 1000"),
        ] {
            let said = says(expression).await;
            assert!(
                said.starts_with("error: ") && said.contains(part),
                "{expression}: {said}"
            );
        }
    }

    #[tokio::test]
    async fn nothing_is_remembered() {
        assert_eq!(says("y = 7").await, "7");
        assert!(says("y").await.contains("unknown identifier"));
        assert!(says("ans").await.contains("unknown identifier"));
    }

    #[tokio::test]
    async fn a_long_result_is_cut_and_says_so() {
        let flag = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            dropped: Arc::clone(&flag),
            deadline: Instant::now() + Duration::from_secs(60),
        };
        let said = cut(evaluate("2^100000", &watch).unwrap());
        assert!(said.starts_with("99900209") && said.ends_with("(cut: the first 10000 of 30103 characters)"));
        assert!(said.len() < 11_000);
    }

    #[tokio::test]
    async fn what_would_take_for_ever_is_given_up() {
        let started = Instant::now();
        let sums = [
            "9^9^9^9",
            "10^(10^9)",
            "100000!",
            "2^(10^12)",
            "fib 10000000",
            "1/3 to 100000000 dp",
        ];
        for said in futures_util::future::join_all(sums.map(says)).await {
            assert!(said.contains("longer than 2 s"), "{said}");
        }
        assert!(started.elapsed() < Duration::from_secs(11), "one after the other");
    }

    #[tokio::test]
    async fn nesting_does_not_end_the_stack() {
        for (one, times) in [
            ("(", 999),
            ("-", 999),
            ("-(", 499),
            ("sin(", 249),
            ("1^-", 333),
            ("+", 999),
            ("x=", 499),
        ] {
            says(&format!("{}1", one.repeat(times))).await;
        }
        assert_eq!(says(&format!("{}1{}", "(".repeat(499), ")".repeat(499))).await, "1");
    }

    #[tokio::test]
    async fn dropping_the_call_stops_the_computing() {
        let flag = {
            let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
            Arc::clone(&stop.0)
        };
        let watch = Watch {
            dropped: flag,
            deadline: Instant::now() + Duration::from_secs(60),
        };
        let started = Instant::now();
        assert!(evaluate("9^9^9^9", &watch).is_err());
        assert!(started.elapsed() < Duration::from_secs(30), "not before its deadline");
    }
}
