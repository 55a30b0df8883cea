//! Settings that are read again while the gateway runs: what of them holds from now on, and what
//! waits for a restart.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::{ConfigError, Flags, Settings, read, tree::Tree, wrong};

/// Settings that were read again.
#[derive(Clone, Debug)]
pub struct Reread {
    /// The settings that hold from now on.
    pub settings: Settings,
    /// The keys whose value changed and holds from now on.
    pub changed: Vec<String>,
    /// The keys whose new value waits for a restart.
    pub needs_restart: Vec<String>,
}

impl Settings {
    /// Reads the settings again from where these came from.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read_again(
        &self,
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Reread, ConfigError> {
        let file = flags.config.as_deref().map(read).transpose()?;
        let environment = super::variables(environment);
        let reread = self.reread(file.as_ref(), flags, &environment);
        reread.map_err(|error| error.located(file.as_ref(), &environment))
    }

    /// The same for a file's text alone, for tests and for those who embed the gateway.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn reread_toml(&self, text: &str) -> Result<Reread, ConfigError> {
        let file = ("the settings".to_owned(), text.to_owned());
        let reread = self.reread(Some(&file), &Flags::default(), &BTreeMap::new());
        reread.map_err(|error| error.located(Some(&file), &BTreeMap::new()))
    }

    fn reread(
        &self,
        file: Option<&(String, String)>,
        flags: &Flags,
        environment: &BTreeMap<String, String>,
    ) -> Result<Reread, ConfigError> {
        let written = super::merge(file, flags, environment)?;
        // As a whole, too: what waits for a restart must be right when that comes.
        let wanted = written.clone().check(flags, environment)?;
        let settings = written.with_fixed_of(&self.tree).check(flags, environment)?;
        let mut needs_restart = differences(&settings.tree, &wanted.tree)?;
        // Their secrets are not shown, and so not compared there.
        for (key, old, new) in [
            ("store.url", &self.store_url, &wanted.store_url),
            ("run_log.url", &self.run_log_url, &wanted.run_log_url),
        ] {
            if old.as_str() != new.as_str() {
                needs_restart.insert(key.to_owned());
            }
        }
        Ok(Reread {
            changed: differences(&self.tree, &settings.tree)?.into_iter().collect(),
            needs_restart: needs_restart.into_iter().collect(),
            settings,
        })
    }
}

/// The keys whose values differ. A list is one value.
fn differences(old: &Tree, new: &Tree) -> Result<BTreeSet<String>, ConfigError> {
    let value = |tree: &Tree| Value::try_from(tree).map_err(|e| wrong(e.to_string()));
    let mut found = BTreeSet::new();
    compare(Some(&value(old)?), Some(&value(new)?), "", &mut found);
    Ok(found)
}

fn compare(old: Option<&Value>, new: Option<&Value>, path: &str, found: &mut BTreeSet<String>) {
    let (Some(Value::Table(old)), Some(Value::Table(new))) = (old, new) else {
        if old != new {
            found.insert(path.to_owned());
        }
        return;
    };
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        compare(old.get(key), new.get(key), &path, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "[server]\nlisten = \"127.0.0.1:1\"\n[store]\nurl = \"postgres://u:one@h/d\"\n\
                          [agents.a]\nmodel = \"demo/guide\"\n";

    fn reread(text: &str) -> Result<Reread, ConfigError> {
        let before = Settings::from_toml(BEFORE).unwrap();
        before.reread_toml(text)
    }

    #[test]
    fn what_cannot_change_stays_and_is_named() {
        let after = "[server]\nlisten = \"127.0.0.1:2\"\nheartbeat = \"3s\"\n\
                     cors_allowed_origins = [\"https://app.example\"]\n\
                     [store]\nurl = \"postgres://u:two@h/d\"\n[limits]\nmax_runs = 3\n\
                     [agents.a]\nmodel = \"demo/guide\"\ndescription = \"x\"\n[agents.b]\nmodel = \"demo/guide\"\n";
        let Reread {
            settings,
            changed,
            needs_restart,
        } = reread(after).unwrap();
        assert_eq!(needs_restart, ["server.heartbeat", "server.listen", "store.url"]);
        assert_eq!(
            changed,
            [
                "agents.a.description",
                "agents.b",
                "limits.max_runs",
                "server.cors_allowed_origins"
            ]
        );
        let before = Settings::from_toml(BEFORE).unwrap();
        assert_eq!((settings.listen, settings.heartbeat), (before.listen, before.heartbeat));
        assert_eq!(settings.store_url.as_str(), before.store_url.as_str());
        assert_eq!((settings.runs.max_runs, settings.agents.len()), (3, 2));
        assert_eq!(settings.cors_allowed_origins, ["https://app.example"]);
    }

    #[test]
    fn the_same_settings_change_nothing() {
        let Reread {
            changed, needs_restart, ..
        } = reread(BEFORE).unwrap();
        assert!(
            changed.is_empty() && needs_restart.is_empty(),
            "{changed:?} {needs_restart:?}"
        );
    }

    #[test]
    fn what_waits_for_a_restart_is_checked_too() {
        let error = reread("[server]\nlost_timeout = \"1s\"").unwrap_err().to_string();
        assert!(error.contains("server.lost_timeout"), "{error}");
    }
}
