//! The time, in UTC or in a zone.
//!
//! The zones are compiled in (jiff's `tzdb-bundle-always`, without the features that read `/usr/share/zoneinfo`): it works
//! in a container that has none, and a zone's name never becomes a path.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};
use serde_json::{Map, Value, json};

use super::{Tool, ToolContext, ToolError, ToolOutput};
use crate::chat::ToolDefinition;

/// How long a zone's name may be; the longest there is has 32 characters.
const MAX_NAME: usize = 64;
/// How alike two names must be for one to be a hint for the other.
const ALIKE: f64 = 0.8;

/// The tool.
pub(super) fn tool() -> Arc<dyn Tool> {
    Arc::new(CurrentTime {
        definition: ToolDefinition {
            name: "current_time".into(),
            description: "Tells the current date and time in a time zone, with its offset from UTC.".into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "timezone": {
                        "type": "string",
                        "description": "An IANA name such as Europe/Berlin; without one, UTC",
                        "maxLength": MAX_NAME
                    }
                },
                "additionalProperties": false
            }),
        },
        zones: TimeZoneDatabase::bundled(),
    })
}

struct CurrentTime {
    definition: ToolDefinition,
    zones: TimeZoneDatabase,
}

impl Tool for CurrentTime {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        _context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        let name = arguments.get("timezone").and_then(Value::as_str).unwrap_or("UTC");
        let told = zone(&self.zones, name.trim()).map(|zone| ToolOutput::text(tell(Timestamp::now(), zone)));
        Box::pin(std::future::ready(told))
    }
}

/// The zone of that name; empty is UTC.
fn zone(zones: &TimeZoneDatabase, name: &str) -> Result<TimeZone, ToolError> {
    if matches!(name.to_ascii_uppercase().as_str(), "" | "UTC" | "Z") {
        return Ok(TimeZone::UTC);
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    if name.len() > MAX_NAME || !name.chars().all(fits) {
        return Err(ToolError::new(
            "A time zone is an IANA name such as Europe/Berlin or America/New_York.",
        ));
    }
    zones.get(name).map_err(|_| {
        let hint = near(zones, name).map_or_else(
            || "use an IANA name such as Europe/Berlin, or UTC".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        ToolError::new(format!("There is no time zone {name:?}; {hint}"))
    })
}

/// The zone that was probably meant: "Tokyo" is Asia/Tokyo.
fn near(zones: &TimeZoneDatabase, name: &str) -> Option<String> {
    let asked = name.to_ascii_lowercase();
    let city = |zone: &str| zone.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let alike = |zone: &str| {
        let zone_name = zone.to_ascii_lowercase();
        strsim::jaro_winkler(&asked, &zone_name).max(strsim::jaro_winkler(&city(&asked), &city(zone)))
    };
    let all = zones.available().map(|zone| {
        let zone = zone.as_str().to_owned();
        (alike(&zone), zone)
    });
    // Of equals the first that has a region: Asia/Tokyo, and not an old name.
    let best = all
        .filter(|(alike, zone)| *alike >= ALIKE && zone.contains('/'))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, zone)| zone)
}

/// A moment in a zone, as compact JSON.
fn tell(now: Timestamp, zone: TimeZone) -> String {
    let name = zone.iana_name().unwrap_or("UTC").to_owned();
    let there = now.to_zoned(zone);
    json!({
        "time": there.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        "timezone": name,
        "weekday": there.strftime("%A").to_string(),
        "readable": there.strftime("%A, %-d %B %Y, %H:%M").to_string(),
        "unix": now.as_second(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str) -> Result<String, String> {
        let now = "2026-11-21T12:00:00.5Z".parse().unwrap();
        zone(&TimeZoneDatabase::bundled(), name)
            .map(|zone| tell(now, zone))
            .map_err(|why| why.0)
    }

    #[test]
    fn it_is_an_hour_later_in_berlin() {
        assert_eq!(
            serde_json::from_str::<Value>(&at("europe/berlin").unwrap()).unwrap(),
            json!({
                "time": "2026-11-21T13:00:00+01:00",
                "timezone": "Europe/Berlin",
                "weekday": "Saturday",
                "readable": "Saturday, 21 November 2026, 13:00",
                "unix": 1_795_262_400,
            })
        );
        for name in ["", "UTC", "utc", "Z"] {
            let told = at(name).unwrap();
            assert!(told.contains(r#""time":"2026-11-21T12:00:00+00:00""#), "{told}");
            assert!(told.contains(r#""timezone":"UTC""#), "{told}");
        }
        assert!(at("Asia/Kolkata").unwrap().contains("17:30:00+05:30"));
        assert!(at("Pacific/Auckland").unwrap().contains("\"weekday\":\"Sunday\""));
    }

    #[test]
    fn an_unknown_zone_gets_a_hint() {
        assert!(at("Tokyo").unwrap_err().ends_with("did you mean Asia/Tokyo?"));
        assert!(
            at("Europe/Berlim")
                .unwrap_err()
                .ends_with("did you mean Europe/Berlin?")
        );
        assert!(at("New_York").unwrap_err().ends_with("did you mean America/New_York?"));
        assert!(at("xqzzy").unwrap_err().contains("such as Europe/Berlin"));
    }

    #[test]
    fn a_name_is_never_a_path() {
        for name in [
            "../../etc/passwd",
            "/etc/localtime",
            "..",
            "a\0b",
            ":/etc/passwd",
            "Europe/Berlin\n",
            "C:\\x",
        ] {
            assert!(at(name).is_err(), "{name:?}");
        }
        assert!(at(&"a".repeat(65)).is_err());
    }

    #[tokio::test]
    async fn without_an_argument_it_is_utc() {
        let context = ToolContext {
            run_id: crate::chat::RunId::new(),
            facts: Arc::default(),
            trace: None,
        };
        let now = Timestamp::now().as_second();
        let told = tool().call(&Map::new(), &context).await.unwrap().content;
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["timezone"], "UTC");
        assert!((told["unix"].as_i64().unwrap() - now).abs() < 5);
    }
}
