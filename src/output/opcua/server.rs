//! The wire itself: a server with its certificate, its users and its nodes, on a thread of its own.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use opcua::crypto::{CertificateStore, SecurityPolicy, X509Data};
use opcua::server::address_space::AddressSpace;
use opcua::server::diagnostics::NamespaceMetadata;
use opcua::server::node_manager::ServerContext;
use opcua::server::node_manager::memory::{InMemoryNodeManager, InMemoryNodeManagerBuilder};
use opcua::server::{
    ANONYMOUS_USER_TOKEN_ID, Server, ServerBuilder, ServerEndpoint, ServerHandle, ServerUserToken,
};
use opcua::types::{BuildInfo, DateTime, MessageSecurityMode};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use super::methods::{Kept, Methods, Shared};
use super::nodes::{self, Nodes, PartResult, Values};
use super::{Camera, Config, Surroundings, User};
use crate::frame::FrameId;
use crate::journal::plain;
use crate::output::handover::{Handover, Inbox, handover};
use crate::output::{LineStatus, Outcome, RejectOutput, Service};
use crate::telemetry::Progress;

/// Security policies that are offered, each with messages signed and encrypted. The standard has given
/// up the older ones.
const POLICIES: [(&str, SecurityPolicy); 2] = [
    ("basic256sha256", SecurityPolicy::Basic256Sha256),
    ("aes256sha256rsapss", SecurityPolicy::Aes256Sha256RsaPss),
];

/// Below the folder of keys. Clients find the certificate and need never see the other.
const CERTIFICATE: &str = "own/cert.der";
const PRIVATE_KEY: &str = "private/private.pem";

/// The longest key that every policy and every client can do with is 4096; each connection costs a
/// signature with it.
const KEY_BITS: u32 = 2048;
/// As long as a line stands. A certificate that runs out stops every client.
const CERTIFICATE_DAYS: u32 = 20 * 365;

/// Sessions, and what each may have waiting: a client that stands still costs no more than this.
const SESSIONS: usize = 16;
const QUEUED_VALUES: usize = 1000;
/// How often subscriptions are looked at, and the fastest that one can be.
const SUBSCRIPTIONS_EVERY_MS: u64 = 50;

/// How often the wire looks at its inbox and at `stop`.
const TURN: Duration = Duration::from_millis(10);
/// For clients to hear what came last, and then for them to be told good-bye.
const LINGER: Duration = Duration::from_millis(250);
const FAREWELL: Duration = Duration::from_millis(200);

enum News {
    Result(Box<Outcome>),
    Beat(Box<LineStatus>),
}

/// The output thread's end of the wire.
pub struct OpcUa {
    news: Handover<News>,
    desk: Option<Desk>,
}

impl OpcUa {
    /// As [`super::bind`].
    pub fn bind(config: &Config, surroundings: Surroundings) -> Result<OpcUa> {
        let passwords = config.users.iter().map(User::password).collect::<Result<Vec<String>>>()?;
        let listener = TcpListener::bind(config.listen)
            .with_context(|| format!("binding output.opcua.listen = \"{}\"", config.listen))?;
        listener.set_nonblocking(true).context("output.opcua: making the port non-blocking")?;
        let port = listener.local_addr().context("output.opcua: asking for the port")?.port();
        let host = config.host();
        let application = format!("urn:inspectd:{}", surroundings.line);
        make_certificate(&config.pki_folder, &application, &host)?;

        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("output.opcua: starting its runtime")?;
        // Nodes may start timers while they are built.
        let entered = runtime.enter();
        let shared = Arc::new(Shared {
            kept: Mutex::new(Kept::new(config.results)),
            ready: AtomicBool::new(false),
        });
        let built = Arc::new(Mutex::new(None));
        let manager = build_nodes(config, &surroundings, shared.clone(), built.clone());
        let mut builder = ServerBuilder::new()
            .application_name("inspectd")
            .application_uri(application)
            .product_uri("urn:inspectd")
            .build_info(build_info())
            .host(host.as_str())
            .port(port)
            .pki_dir(&config.pki_folder)
            .certificate_path(CERTIFICATE)
            .private_key_path(PRIVATE_KEY)
            .discovery_urls(vec![format!("opc.tcp://{host}:{port}/")])
            .subscription_poll_interval_ms(SUBSCRIPTIONS_EVERY_MS)
            .max_sessions(SESSIONS)
            .with_node_manager(InMemoryNodeManagerBuilder::new(manager));
        let limits = &mut builder.limits_mut().subscriptions;
        // Nothing is sampled: each change is told.
        limits.min_sampling_interval_ms = 0.0;
        limits.min_publishing_interval_ms = SUBSCRIPTIONS_EVERY_MS as f64;
        limits.max_monitored_item_queue_size = QUEUED_VALUES;
        for (user, password) in config.users.iter().zip(passwords) {
            let token = ServerUserToken::user_pass(user.name.clone(), password);
            builder = builder.add_user_token(user.name.clone(), token);
        }
        let users: Vec<String> = config.users.iter().map(|user| user.name.clone()).collect();
        for (name, policy) in POLICIES {
            let mode = MessageSecurityMode::SignAndEncrypt;
            builder = builder.add_endpoint(name, ServerEndpoint::new("/", policy, mode, &users));
        }
        if config.anonymous {
            let nobody = [ANONYMOUS_USER_TOKEN_ID.to_owned()];
            builder = builder.add_endpoint("none", ServerEndpoint::new_none("/", &nobody));
        }
        let (server, handle) =
            builder.build().map_err(|error| anyhow!("[output.opcua]: {error}"))?;
        let nodes = built.lock().unwrap_or_else(PoisonError::into_inner).take();
        let nodes = nodes.context("[output.opcua]: the server made no nodes")?;
        drop(entered);

        let (news, inbox) = handover("opcua");
        let cameras = surroundings.cameras;
        let desk = Desk { runtime, listener, server, handle, nodes, shared, cameras, inbox };
        Ok(OpcUa { news, desk: Some(desk) })
    }
}

impl RejectOutput for OpcUa {
    fn name(&self) -> &str {
        "opcua"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.news.give_result(News::Result(Box::new(outcome.clone())))
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat(Box::new(status.clone())))
    }

    fn service(&mut self) -> Option<Service> {
        let desk = self.desk.take()?;
        Some(Box::new(move |stop, progress| desk.run(stop, progress)))
    }
}

impl Config {
    /// What the server calls this machine.
    fn host(&self) -> String {
        self.host.clone().unwrap_or_else(|| match self.listen.ip() {
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        })
    }
}

impl User {
    fn password(&self) -> Result<String> {
        let path = self.password_file.display();
        let key = || format!("output.opcua.user.password_file = {path}");
        let text = fs::read_to_string(&self.password_file)
            .with_context(|| format!("reading {}", key()))?;
        let password = text.lines().next().unwrap_or_default();
        ensure!(
            !password.is_empty(),
            "{}: its first line is empty; write the password there",
            key()
        );
        Ok(password.to_owned())
    }
}

fn build_info() -> BuildInfo {
    BuildInfo {
        product_uri: "urn:inspectd".into(),
        manufacturer_name: "inspectd".into(),
        product_name: "inspectd".into(),
        software_version: env!("CARGO_PKG_VERSION").into(),
        build_number: env!("CARGO_PKG_VERSION").into(),
        build_date: DateTime::null(),
    }
}

/// Makes key and certificate where neither is there. The key is readable to this account only.
fn make_certificate(folder: &Path, application: &str, host: &str) -> Result<()> {
    let (certificate, key) = (folder.join(CERTIFICATE), folder.join(PRIVATE_KEY));
    ensure!(
        certificate.exists() == key.exists(),
        "output.opcua.pki_folder: of {} and {} one is missing; put it back, or remove the other for both \
         to be made anew, and have all clients trust the new one",
        certificate.display(),
        key.display()
    );
    if key.exists() {
        return Ok(());
    }
    let private = folder.join("private");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&private)
        .with_context(|| format!("output.opcua.pki_folder: making {}", private.display()))?;
    // Clients compare both with what the server says of itself.
    let host = host.trim_matches(['[', ']']).to_owned();
    let names = X509Data::alt_host_names(application, Some(vec![host]), false, false, false);
    let wanted = X509Data {
        key_size: KEY_BITS,
        common_name: "inspectd".to_owned(),
        organization: application.to_owned(),
        organizational_unit: String::new(),
        country: String::new(),
        state: String::new(),
        alt_host_names: names,
        certificate_duration_days: CERTIFICATE_DAYS,
    };
    CertificateStore::create_certificate_and_key(&wanted, false, &certificate, &key)
        .map_err(|error| anyhow!("output.opcua.pki_folder: making a certificate: {error}"))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("output.opcua.pki_folder: closing {}", key.display()))?;
    log::info!("opcua_certificate_made file={}", certificate.display());
    Ok(())
}

/// What the server calls to have its nodes; they are left in `built`.
fn build_nodes(
    config: &Config,
    surroundings: &Surroundings,
    shared: Arc<Shared>,
    built: Arc<Mutex<Option<Nodes>>>,
) -> impl FnOnce(ServerContext, &mut AddressSpace) -> Methods + use<> {
    let commanders: BTreeSet<String> =
        config.users.iter().filter(|user| user.commands).map(|user| user.name.clone()).collect();
    let cameras: Vec<Arc<str>> =
        surroundings.cameras.iter().map(|camera| camera.name.clone()).collect();
    let controls = surroundings.controls.clone();
    move |context: ServerContext, space: &mut AddressSpace| {
        let mut types = context.type_tree.write();
        let namespaces = [(nodes::VISION, true), (nodes::OWN, false)].map(|(uri, subset)| {
            let index = types.namespaces_mut().add_namespace(uri);
            space.add_namespace(uri, index);
            NamespaceMetadata {
                namespace_uri: uri.to_owned(),
                namespace_index: index,
                is_namespace_subset: Some(subset),
                ..NamespaceMetadata::default()
            }
        });
        let indices = [namespaces[0].namespace_index, namespaces[1].namespace_index];
        let mut methods = HashMap::new();
        let names: Vec<&str> = cameras.iter().map(|name| &**name).collect();
        let nodes = Nodes::build(space, indices, &names, |id, method| {
            methods.insert(id, method);
        });
        *built.lock().unwrap_or_else(PoisonError::into_inner) = Some(nodes);
        let namespaces = namespaces.to_vec();
        Methods { shared, controls, cameras, methods, commanders, namespaces }
    }
}

/// The wire's end: all that runs on its thread.
struct Desk {
    runtime: Runtime,
    listener: TcpListener,
    server: Server,
    handle: ServerHandle,
    nodes: Nodes,
    shared: Arc<Shared>,
    cameras: Vec<Camera>,
    inbox: Inbox<News>,
}

impl Desk {
    fn run(self, stop: &AtomicBool, progress: &Progress) {
        let Desk { runtime, listener, server, handle, nodes, shared, cameras, inbox } = self;
        runtime.block_on(async move {
            let manager = handle.node_managers().get_of_type::<InMemoryNodeManager<Methods>>();
            let listener = tokio::net::TcpListener::from_std(listener);
            let (Some(manager), Ok(listener)) = (manager, listener) else {
                log::error!("opcua_down reason=\"the server can't be started\"");
                return;
            };
            let mut serving = tokio::spawn(server.run_with(listener));
            let mut board = Board { nodes, shared, cameras, missed: 0 };
            let mut stopped_at: Option<Instant> = None;
            loop {
                progress.mark();
                // Before the inbox is emptied: who stops the wire has handed over everything.
                let stopping = stop.load(Ordering::SeqCst);
                board.missed += inbox.missed();
                for news in inbox.news.try_iter() {
                    let values = board.show(news);
                    let values = values.iter().map(|(node, value)| (node, None, value.clone()));
                    if let Err(status) = manager.set_values(handle.subscriptions(), values) {
                        log::error!("opcua_not_shown reason=\"{status}\"");
                    }
                }
                if stopping && clock() >= *stopped_at.get_or_insert_with(clock) + LINGER {
                    break;
                }
                if let Ok(ended) = timeout(TURN, &mut serving).await {
                    let reason = match ended {
                        Ok(Ok(())) => "the server has ended".to_owned(),
                        Ok(Err(error)) => error,
                        Err(error) => error.to_string(),
                    };
                    log::error!("opcua_down reason=\"{}\"", plain(reason));
                    return;
                }
            }
            handle.cancel();
            // Clients that do not listen are cut off.
            let _told = timeout(FAREWELL, serving).await;
        });
    }
}

/// What is shown.
struct Board {
    nodes: Nodes,
    shared: Arc<Shared>,
    cameras: Vec<Camera>,
    /// Results that found no room on their way here.
    missed: u64,
}

impl Board {
    fn show(&mut self, news: News) -> Values {
        match news {
            News::Result(outcome) => {
                let result = Arc::new(PartResult::of(&outcome, self.bundle(outcome.frame)));
                // Before it is told, so that who hears of it can fetch it.
                let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push(result.clone());
                self.nodes.result(&result)
            }
            News::Beat(status) => {
                self.shared.ready.store(status.state.ready(), Ordering::SeqCst);
                self.nodes.status(&status, self.missed)
            }
        }
    }

    fn bundle(&self, frame: FrameId) -> &str {
        self.cameras.get(usize::from(frame.camera)).map_or("", |camera| &camera.bundle)
    }
}

#[expect(clippy::disallowed_methods, reason = "the wire's own thread, started by pipeline")]
pub fn clock() -> Instant {
    Instant::now()
}
