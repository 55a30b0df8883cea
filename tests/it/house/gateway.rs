//! The gateway between client and upstream: inside the test ([`Gateway`]), or the real program ([`Process`]).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{Call, Connection, PATIENCE, Place, Task, eventually, soon, wait_for, within};

/// The fast settings of the fault stories: nothing that is wrong takes long.
pub(crate) const FAST: &str = r#"
[server]
heartbeat = "300ms"
[runs]
deadline = "5s"
detach_grace = "500ms"
[providers.openai]
connect_timeout = "200ms"
first_byte_timeout = "1s"
first_token_timeout = "1s"
gap_timeout = "1s"
max_retries = 2
"#;

/// The same where nothing is about time: there is enough of it for a machine that has other things to do.
pub(crate) const PATIENT: &str = r#"
[runs]
deadline = "20s"
[providers.openai]
connect_timeout = "4s"
first_byte_timeout = "10s"
first_token_timeout = "10s"
gap_timeout = "10s"
"#;

/// A gateway in the making: its configuration, table by table.
#[derive(Debug)]
pub(crate) struct Recipe {
    folder: TempDir,
    /// Headers such as `[server]`, in order, and the lines under each.
    tables: Vec<(String, Vec<String>)>,
}

impl Recipe {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            tables: vec![(String::new(), Vec::new())],
        }
    }

    /// With more configuration. A table that is there already gets the new lines; a key that is there already, the new value.
    pub(crate) fn toml(mut self, text: &str) -> Self {
        let mut at = 0;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.starts_with('[') && line.ends_with(']') {
                let known = self
                    .tables
                    .iter()
                    .position(|(table, _)| table == line && !line.starts_with("[["));
                at = known.unwrap_or(self.tables.len());
                if known.is_none() {
                    self.tables.push((line.to_owned(), Vec::new()));
                }
                continue;
            }
            let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
            let lines = &mut self.tables[at].1;
            match lines.iter_mut().find(|old| key(old).is_some() && key(old) == key(line)) {
                Some(old) => line.clone_into(old),
                None => lines.push(line.to_owned()),
            }
        }
        self
    }

    /// With a key for a caller of this name, and more lines about it.
    pub(crate) fn key(self, name: &str, key: &str, more: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.toml(&format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{hex}\"\n{more}"))
    }

    /// With [`FAST`].
    pub(crate) fn fast(self) -> Self {
        self.toml(FAST)
    }

    /// With [`FAST`], as far as nothing is about time: see [`PATIENT`].
    pub(crate) fn patient(self) -> Self {
        self.toml(FAST).toml(PATIENT)
    }

    /// The whole configuration, as TOML.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (table, lines) in &self.tables {
            writeln!(text, "{table}\n{}", lines.join("\n")).expect("a string takes everything");
        }
        text
    }

    /// Starts it inside the test.
    pub(crate) async fn start(self) -> Gateway {
        Gateway::serve(self.text(), Some(self.folder)).await
    }

    /// Starts the real program with it.
    pub(crate) async fn spawn(self) -> Process {
        self.spawn_in(&[]).await
    }

    /// Starts the real program with it, and with these variables.
    pub(crate) async fn spawn_in(self, env: &[(&str, &str)]) -> Process {
        let file = self.folder.path().join("story.toml");
        std::fs::write(&file, self.text()).expect("a writable folder");
        Process::start_in(self.folder, env, &["--config", file.to_str().expect("a plain path")]).await
    }
}

/// A gateway inside the test, on the test's own runtime.
pub(crate) struct Gateway {
    running: sluicegate::app::Running,
    toml: String,
    folder: Option<TempDir>,
}

impl Place for Gateway {
    fn addr(&self) -> SocketAddr {
        self.running.addr()
    }
}

impl Gateway {
    /// With exactly this configuration.
    pub(crate) async fn start(toml: &str) -> Self {
        Self::serve(toml.to_owned(), None).await
    }

    /// The recipe of most stories: the provider `openai` at this place, the agent `assistant`, sessions in a folder of its own.
    pub(crate) fn with(upstream: &impl Place) -> Recipe {
        let recipe = Recipe::new();
        let (folder, upstream) = (recipe.folder.path().display().to_string(), upstream.addr());
        recipe.toml(&format!(
            r#"
[server]
listen = "127.0.0.1:0"
admin_listen = ""
[store]
url = "sqlite://{folder}/sluicegate.db"
[artifacts]
url = "file://{folder}/artifacts"
[providers.openai]
kind = "openai"
base_url = "http://{upstream}/v1"
api_key = "test-key"
default_model = "test-model"
[agents.assistant]
model = "openai/test-model"
"#
        ))
    }

    /// The one place that knows how the library is started.
    async fn serve(toml: String, folder: Option<TempDir>) -> Self {
        let settings = sluicegate::config::Settings::from_toml(&toml);
        let settings = settings.unwrap_or_else(|error| panic!("{error:#}\nin\n{toml}"));
        let running = soon("the gateway to start", sluicegate::app::serve(settings)).await;
        let running = running.unwrap_or_else(|error| panic!("the gateway does not start: {error:#}\nwith\n{toml}"));
        Self { running, toml, folder }
    }

    /// Where those who run it look; the story's configuration has to have `admin_listen`.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.may_admin().expect("an admin listener")
    }

    /// The same, where there is one.
    pub(crate) fn may_admin(&self) -> Option<SocketAddr> {
        self.running.admin_addr()
    }

    /// Where it keeps its files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().expect("a gateway started from a recipe").path()
    }

    /// Stops it as SIGTERM would, within the 25 s that are promised.
    pub(crate) async fn stop(self) {
        let stopped = within(Duration::from_secs(25), "the gateway to stop", self.running.stop()).await;
        stopped.expect("a task that did not panic");
    }

    /// Stops it, and starts another with the same configuration and files, at another port.
    pub(crate) async fn restart(self) -> Self {
        let stopped = within(Duration::from_secs(25), "the gateway to stop", self.running.stop()).await;
        stopped.expect("a task that did not panic");
        Self::serve(self.toml, self.folder).await
    }
}

/// The real program, in a folder of its own, with nothing in its environment but what the story says.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Bound, and never listened on, as long as this lives, so that no other test gets this port.
    listen: TcpSocket,
    env: HashMap<String, String>,
    args: Vec<String>,
    log: watch::Sender<String>,
    readers: Vec<Task>,
    folder: TempDir,
    starts: usize,
}

impl Place for Process {
    fn addr(&self) -> SocketAddr {
        self.listen.local_addr().expect("a bound socket")
    }
}

impl Process {
    /// With these variables and arguments; returns when it is ready for work. Without a provider it is the demo.
    pub(crate) async fn start(env: &[(&str, &str)], args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder"), env, args).await
    }

    /// As a user would start it with a key for OpenAI, where OpenAI is this upstream.
    pub(crate) async fn with(upstream: &impl Place) -> Self {
        let base_url = format!("http://{}/v1", upstream.addr());
        let env = [
            ("OPENAI_API_KEY", "test-key"),
            ("OPENAI_BASE_URL", &base_url),
            ("SLUICEGATE_MODEL", "openai/test-model"),
        ];
        Self::start(&env, &[]).await
    }

    async fn start_in(folder: TempDir, env: &[(&str, &str)], args: &[&str]) -> Self {
        let listen = reserved_port();
        let address = listen.local_addr().expect("a bound socket").to_string();
        let mut variables = HashMap::from([
            ("HOME".to_owned(), folder.path().display().to_string()),
            ("SLUICEGATE__SERVER__LISTEN".to_owned(), address),
            ("SLUICEGATE__SERVER__ADMIN_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ]);
        variables.extend(
            env.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let log = watch::Sender::default();
        let (child, readers) = launch(folder.path(), &variables, &args, &log);
        let mut process = Self {
            child,
            listen,
            env: variables,
            args,
            log,
            readers,
            folder,
            starts: 1,
        };
        process.ready().await;
        process
    }

    /// Starts it again, after it ended, with the same files, port, variables and arguments. The log goes on.
    pub(crate) async fn restart(&mut self) {
        let exit = self.child.try_wait().expect("a child");
        assert!(exit.is_some(), "restarted while it runs");
        (self.child, self.readers) = launch(self.folder.path(), &self.env, &self.args, &self.log);
        self.starts += 1;
        self.ready().await;
    }

    /// Waits until `/readyz` says 200. A program that ended instead is a failure that shows its log.
    async fn ready(&mut self) {
        let addr = self.addr();
        eventually("/readyz of the program", async || {
            if let Some(exit) = self.child.try_wait().expect("a child") {
                self.log_settled().await;
                panic!("the program ended ({exit}):\n{}", self.log());
            }
            drop(tokio::net::TcpStream::connect(addr).await.ok()?);
            let ready = Connection::open(&addr).await.call(Call::get("/readyz")).await;
            (ready.status == 200).then_some(())
        })
        .await;
    }

    /// Where those who run it look: each time that it starts it says at which port that is.
    pub(crate) async fn admin(&self) -> SocketAddr {
        const SAID: &str = "metrics are at http://";
        let starts = self.starts;
        let said = |log: &String| log.matches(SAID).count() == starts;
        wait_for(&self.log, "the address of the meters".to_owned(), said).await;
        let log = self.log();
        let (_, place) = log.rsplit_once(SAID).expect("it was said");
        let place = place.split('/').next().unwrap_or_default();
        place.parse().expect("an address")
    }

    /// Its working folder, with `data` in it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("a running program")
    }

    /// All that it has written to stdout and stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until its log contains this.
    pub(crate) async fn logged(&self, text: &str) {
        wait_for(&self.log, format!("{text:?} in the log"), |log| log.contains(text)).await;
    }

    /// Ends it as a crash would, at once.
    pub(crate) async fn kill9(&mut self) {
        soon("the program to be killed", self.child.kill())
            .await
            .expect("a child that can be killed");
    }

    /// Changes its file of settings, for programs that were made from a recipe.
    pub(crate) fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let file = self.folder().join("story.toml");
        let text = std::fs::read_to_string(&file).expect("a file of settings");
        std::fs::write(&file, change(text)).expect("a writable folder");
    }

    /// Has it read its settings again (SIGHUP), and waits until it says how that went: in force as
    /// this generation, or wrong.
    pub(crate) async fn reload(&self) -> Result<u64, String> {
        let before = self.log().len();
        signal("HUP", self.pid()).await;
        let said = |log: &String| {
            let new = &log[before..];
            new.contains("the settings were read again")
        };
        wait_for(&self.log, "the settings to be read again".to_owned(), said).await;
        let log = self.log();
        let line = log[before..]
            .lines()
            .find(|line| line.contains("the settings were read again"));
        let line = line.expect("it was said").to_owned();
        if line.contains("nothing changes") {
            return Err(line);
        }
        // Said before it is done, which it is at once.
        let generation = eventually("the new generation", async || {
            let ready = Connection::open(&self.addr()).await.call(Call::get("/readyz")).await;
            let number = ready.json().await["generation"].as_u64()?;
            line.contains(&format!("generation={number}")).then_some(number)
        });
        Ok(generation.await)
    }

    /// Asks it to stop (SIGTERM), and does not wait.
    pub(crate) async fn terminate(&self) {
        signal("TERM", self.pid()).await;
    }

    /// Waits until it has ended, and says how. Its log is complete then.
    pub(crate) async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let exit = within(deadline, "the program to end", self.child.wait())
            .await
            .expect("a child");
        self.log_settled().await;
        exit
    }

    async fn log_settled(&mut self) {
        for reader in &mut self.readers {
            within(PATIENCE, "the end of the log", reader.ended()).await;
        }
    }
}

/// Sends a signal to one process, which the story started.
pub(crate) async fn signal(name: &str, pid: u32) {
    let kill = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status();
    assert!(
        soon("kill", kill).await.expect("a shell").success(),
        "no signal was sent"
    );
}

/// A port that the program can listen on, and that the kernel gives to nobody else as long as the socket is kept.
pub(crate) fn reserved_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a fresh socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    socket
}

fn launch(
    folder: &Path,
    env: &HashMap<String, String>,
    args: &[String],
    log: &watch::Sender<String>,
) -> (Child, Vec<Task>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.current_dir(folder).env_clear().envs(env).args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("the program starts");
    let out = Task::spawn(collect(child.stdout.take().expect("piped"), log.clone()));
    let err = Task::spawn(collect(child.stderr.take().expect("piped"), log.clone()));
    (child, vec![out, err])
}

async fn collect(from: impl AsyncRead + Unpin, log: watch::Sender<String>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}
