//! What gateways inside tests log: one listener for the whole binary, which keeps a run's last line and every line that
//! says what no line may say.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// What was heard so far, by all gateways in this binary.
static HEARD: Mutex<Option<Heard>> = Mutex::new(None);

#[derive(Default)]
struct Heard {
    /// The `run.end` lines, by run.
    ends: HashMap<String, Vec<String>>,
    /// What no line may say.
    secrets: Vec<String>,
    /// Lines that say it.
    leaks: Vec<String>,
}

/// Listens from now on; more than once does no harm. Lines with one of `secrets` in them are kept.
pub(crate) fn listen(secrets: &[&str]) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let listener = tracing_subscriber::registry().with(Listener.with_filter(LevelFilter::DEBUG));
        listener.try_init().expect("nobody else listens in this binary");
    });
    heard(|heard| {
        for secret in secrets {
            if !heard.secrets.iter().any(|known| known == secret) {
                heard.secrets.push((*secret).to_owned());
            }
        }
    });
}

/// The lines that say how this run ended, each as `field=value` after `field=value`.
pub(crate) fn ends_of(run_id: &str) -> Vec<String> {
    heard(|heard| heard.ends.get(run_id).cloned().unwrap_or_default())
}

/// Lines that say what no line may say.
pub(crate) fn leaks() -> Vec<String> {
    heard(|heard| heard.leaks.clone())
}

fn heard<T>(look: impl FnOnce(&mut Heard) -> T) -> T {
    let mut heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    look(heard.get_or_insert_default())
}

struct Listener;

impl<S: tracing::Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let (name, target) = (event.metadata().name(), event.metadata().target());
        let mut line = Line::default();
        event.record(&mut line);
        heard(|heard| {
            if heard.secrets.iter().any(|secret| line.text.contains(secret.as_str())) {
                heard.leaks.push(format!("{target}: {}", line.text));
            }
            if let Some(run_id) = line.run_id.filter(|_| name == "run.end") {
                heard.ends.entry(run_id).or_default().push(line.text);
            }
        });
    }
}

#[derive(Default)]
struct Line {
    text: String,
    run_id: Option<String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "run_id" {
            self.run_id = Some(format!("{value:?}"));
        }
        let _ = write!(self.text, "{}={value:?} ", field.name());
    }
}
