//! The parts of a gateway that its settings name: agents, providers, tools, the issuer of tokens.

use std::{collections::BTreeMap, sync::Arc};

use super::config_error;
use crate::{
    agent::{Agent, Agents},
    config::Settings,
    error::Error,
    http::{auth::jwt::Issuer, routes},
    meters::Meters,
    provider::Providers,
    tool::{self, Tools},
};

/// The parts that the settings name.
#[derive(Clone)]
pub(super) struct Staff {
    /// Who can be asked.
    pub(super) agents: Agents,
    /// Who answers.
    pub(super) providers: Providers,
    /// What agents can do beside talking.
    pub(super) tools: Arc<Tools>,
    /// Whose tokens are taken.
    pub(super) issuer: Option<Arc<Issuer>>,
}

impl Staff {
    /// Makes the parts. Those of `old` whose settings are the same stay as they are.
    ///
    /// # Errors
    /// What keeps the settings from making a gateway.
    pub(super) fn new(
        settings: &Settings,
        meters: &Arc<Meters>,
        old: Option<(&Settings, &Self)>,
    ) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let listen_at = settings.listen;
        if settings.access.exposed() {
            problems.push(format!(
                "server.listen is {listen_at}, which is not loopback, and anybody who reaches it could use it; \
                 `sluicegate keys new` makes a key for [[auth.keys]], or set auth.allow_anonymous = true if that is meant"
            ));
        }
        let all = settings.providers.clone();
        let providers = match old {
            Some((before, old)) => old.providers.renewed(&before.providers, all, meters),
            None => Providers::new(all, meters),
        };
        let providers = providers.map_err(|e| problems.push(format!("providers.{e}")));
        let tools = match old {
            Some((before, old)) => old.tools.renewed(&before.tools, settings.tools.clone()),
            None => Tools::new(settings.tools.clone()),
        };
        let tools = tools.map_err(|e| problems.push(e));
        let before = old.and_then(|(_, old)| old.issuer.as_ref());
        let issuer = settings.access.issuer.clone().map(|issuer| match before {
            Some(before) => before.renewed(issuer),
            None => Issuer::new(issuer),
        });
        let issuer = issuer.transpose();
        let issuer = issuer.map_err(|e| problems.push(format!("auth.jwt: {e}")));
        let (Ok(providers), Ok(tools), Ok(issuer)) = (providers, tools, issuer) else {
            return Err(config_error(joined(&problems)));
        };
        let agents = agents(settings, &providers, &tools, &mut problems);
        let keys = settings.access.keys.all();
        let keys = keys.map(|key| (format!("auth.keys: {}", key.principal.as_str()), &key.allowance));
        let issued = settings.access.issuer.iter();
        let issued = issued.map(|issuer| ("auth.jwt".to_owned(), &issuer.allowance));
        for (whose, allowance) in keys.chain(issued) {
            if let Err(e) = allowance.permit.check(&agents, &tools) {
                problems.push(format!("{whose}: {e}"));
            }
        }
        if !problems.is_empty() {
            return Err(config_error(joined(&problems)));
        }
        Ok(Self {
            agents,
            providers,
            tools: Arc::new(tools),
            issuer,
        })
    }
}

/// The names that a series of the meters may have: all of the configuration, none of a client's.
pub(super) fn names(settings: &Settings) -> impl Iterator<Item = String> {
    let models = settings.agents.iter().flat_map(|agent| {
        let named = [&agent.model]
            .into_iter()
            .chain(&agent.fallbacks)
            .map(|model| model.model.clone());
        let allowed = agent.allowed_models.iter().filter(|model| !model.ends_with('*'));
        named.chain(allowed.filter_map(|model| Some(model.split_once('/')?.1.to_owned())))
    });
    (settings.agents.iter().map(|agent| agent.name.clone()))
        .chain(models)
        .chain(settings.providers.iter().map(|provider| provider.name.clone()))
        .chain(tool::built_in().map(str::to_owned))
        .chain(settings.tools.http.iter().map(|tool| tool.name.clone()))
        .chain(settings.tools.mcp.iter().map(|server| server.name.clone()))
        .chain(routes().into_iter().map(|route| route.path.to_owned()))
}

/// Problems as one text: a line each, if there are several.
fn joined(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        all => format!("{} settings are wrong:\n  {}", all.len(), all.join("\n  ")),
    }
}

/// The configured agents; for each that asks for a provider or a tool that is not there, a problem.
fn agents(settings: &Settings, providers: &Providers, tools: &Tools, problems: &mut Vec<String>) -> Agents {
    let all: BTreeMap<String, Arc<Agent>> = settings
        .agents
        .iter()
        .map(|agent| (agent.name.clone(), Arc::new(agent.clone())))
        .collect();
    for agent in all.values() {
        for pattern in &agent.tools {
            if let Err(e) = tools.knows(pattern) {
                problems.push(format!("agents.{}.tools: {e}", agent.name));
            }
        }
        let is_missing = |name: &str| providers.get(name).is_none();
        for model in agent.fallbacks.iter().filter(|model| is_missing(&model.provider)) {
            problems.push(format!(
                "agents.{}.fallbacks names {model}, whose provider is not configured",
                agent.name
            ));
        }
        if is_missing(&agent.model.provider) {
            problems.push(format!(
                "agents.{}.model names the provider {:?}, which is not configured",
                agent.name, agent.model.provider
            ));
        }
    }
    let default = settings.default_agent.clone();
    if !all.contains_key(&default) {
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        problems.push(format!(
            "default_agent is {default:?}, and there is no such agent; there are: {}",
            names.join(", ")
        ));
    }
    Agents { all, default }
}
