//! The control API: JSON over HTTP on a port of its own. `GET /` tells what there is.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{
    body::Incoming, client::conn::http1 as client, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tsp_rt::{Listener as _, Rt};

use super::{
    Rule,
    aws::AwsErrorStyle,
    exchange::{Operation, Provider},
    knobs::{BadRule, FaultRule, LatencyRule, QuotaRule},
    serve::Service,
    sim::{Clock, ConnectionRules, Lifetimes, Sim},
    world::{
        AwsKeyState, AzureKeyState, AzureVaultState, CredentialState, GcpProjectState,
        GcpVersionState, ThalesKeyState, WorldDoc, WorldError,
    },
};

/// Bytes of a request's body: a world with a hundred thousand tenants.
const BODY_BYTES_MAX: usize = 256 << 20;
/// How long a body may take.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// How long connecting to it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const HELP: &str = r#"kmssim's control API. Bodies are JSON. A target is {"provider","operation","key"}, all optional;
providers: aws gcp azure thales; operations: wrap unwrap data_key re_encrypt lookup random token discovery other;
key: a key or a credential, by any of its names.

GET    /health                  200 once it serves
GET    /metrics                 counters per provider and operation, token calls per credential, connections
GET    /requests/refused        what a correct client would not have sent; also /requests/failed
DELETE /requests                counters and records from zero
GET    /world      PUT /world   the world as loaded; loads another
GET    /clients                 keys and credentials of a sample world
POST   /latency                 {"target", "fixed_ms"} or {"min_ms","max_ms"} or {"p50_ms","p99_ms"}; GET, DELETE
POST   /quota                   {"target", "per_second", "retry_after_s"}; GET, DELETE
POST   /faults                  {"target", "kind", "percent", "count", "skip", …}; GET, DELETE, DELETE /faults/ID
         kinds: status(status body media_type headers retry_after_s) code(code message) throttle(retry_after_s)
         ok_error(code message) patch(patch) html(status) close hang reset_before_head reset_after_head garbage(bytes) truncate drip(every_ms) huge(bytes)
         endless(every_ms) header_flood(bytes)
POST   /clock                   {"skew_s": -360} or {"frozen_unix_s": 1768472130} or {}
POST   /lifetimes               {"aws_session_s","gcp_token_s","azure_token_s","azure_refresh_in_s","thales_token_s"}
POST   /connections             {"idle_close_ms": 5000, "accept": "serve" | "reset" | "stall" | "garbage"}
POST   /connections/close       closes idle connections now, the others after their answer
POST   /keys                    {"provider","key","action"}; actions: enable disable delete schedule_deletion rotate
         recover expire unexpire deny allow; for one version add "version", to deny one thing "operation"
POST   /credentials             {"provider","credential","action"}; actions: activate disable revoke revoke_tokens
POST   /accounts                {"provider","account","action"}; actions: close reopen; gcp also suspend disable_service;
         azure (a vault): also delete firewall; thales (any account): the licence
POST   /claims                  {"vault","claims"}: Azure asks for tokens with these claims; null for none
POST   /replays                 {"refuse": false}: Entra takes a client assertion again, as MSAL expects; true by default
POST   /aws-errors              {"style": "plain" | "namespaced" | "header"}
POST   /reset                   all as at the start
"#;

/// Asks the control API at `address`.
///
/// # Errors
/// If there is no answer.
pub(super) async fn ask<R: Rt>(
    rt: R,
    address: SocketAddr,
    path: &'static str,
) -> io::Result<Bytes> {
    let stream = rt.connect(address, CONNECT_TIMEOUT).await;
    let io = TokioIo::new(stream.map_err(io::Error::other)?);
    let (mut sender, connection) = client::handshake(io).await.map_err(io::Error::other)?;
    rt.spawn(async move { drop(connection.await) });
    let request = Request::get(path)
        .header(header::HOST, "control")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let body = answer.into_body().collect().await;
    Ok(body.map_err(io::Error::other)?.to_bytes())
}

/// What an order could not be carried out for.
#[derive(Debug)]
struct Trouble(StatusCode, String);

impl Trouble {
    fn not_found(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }
}

impl From<BadRule> for Trouble {
    fn from(BadRule(why): BadRule) -> Self {
        Self::bad(why)
    }
}

impl From<WorldError> for Trouble {
    fn from(error: WorldError) -> Self {
        Self::bad(error.to_string())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockOrder {
    skew_s: Option<i64>,
    frozen_unix_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOrder {
    provider: Provider,
    key: String,
    action: KeyAction,
    /// A number, or for Azure an id.
    version: Option<Value>,
    /// What to deny or allow, if not all.
    operation: Option<Operation>,
}

impl KeyOrder {
    /// The version's number, where versions have numbers.
    fn number(&self) -> Option<u32> {
        u32::try_from(self.version.as_ref()?.as_u64()?).ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyAction {
    Enable,
    Disable,
    Delete,
    ScheduleDeletion,
    Rotate,
    Recover,
    Expire,
    Unexpire,
    Deny,
    Allow,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialOrder {
    provider: Provider,
    credential: String,
    action: CredentialAction,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CredentialAction {
    Activate,
    Disable,
    Revoke,
    RevokeTokens,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountOrder {
    provider: Provider,
    #[serde(default)]
    account: String,
    action: AccountAction,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AccountAction {
    Close,
    Reopen,
    Suspend,
    DisableService,
    Delete,
    Firewall,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimsOrder {
    vault: String,
    claims: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StyleOrder {
    style: AwsErrorStyle,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayOrder {
    refuse: bool,
}

/// The control API of one simulator.
pub(crate) struct Control<R> {
    service: Rc<Service<R>>,
    /// What `GET /clients` tells.
    clients: Value,
    /// What holds from the start.
    rules: Vec<Rule>,
}

impl<R: Rt> Control<R> {
    pub(crate) fn new(service: Rc<Service<R>>, clients: Value, rules: Vec<Rule>) -> Rc<Self> {
        Rc::new(Self {
            service,
            clients,
            rules,
        })
    }

    /// Accepts until the listener is of no more use.
    pub(crate) async fn listen(self: Rc<Self>, mut listener: R::Listener) {
        while let Ok((stream, _)) = listener.accept().await {
            let control = Rc::clone(&self);
            self.service.rt.spawn(async move {
                let service = service_fn(|request| {
                    let control = Rc::clone(&control);
                    async move { Ok::<_, Infallible>(control.answer(request).await) }
                });
                let connection = http1::Builder::new()
                    .header_read_timeout(None)
                    .auto_date_header(false)
                    .serve_connection(TokioIo::new(stream), service);
                // Whoever asked has gone.
                drop(connection.await);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect();
        let rt = &self.service.rt;
        let answered = match Box::pin(tsp_rt::timeout(rt, BODY_TIME_MAX, body)).await {
            Ok(Ok(body)) => self.order(&parts.method, parts.uri.path(), &body.to_bytes()),
            Ok(Err(_)) | Err(_) => Err(Trouble::bad("the body is too large, or did not come")),
        };
        let (status, media_type, text) = match answered {
            Ok(Value::String(text)) => (StatusCode::OK, "text/plain; charset=utf-8", text),
            Ok(value) => (StatusCode::OK, "application/json", format!("{value:#}\n")),
            Err(Trouble(status, why)) => {
                let error = json!({ "error": why });
                (status, "application/json", format!("{error}\n"))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(media_type),
        );
        response
    }

    fn order(&self, method: &Method, path: &str, body: &[u8]) -> Result<Value, Trouble> {
        let mut sim = self.service.sim.borrow_mut();
        let done = json!({ "done": true });
        match (method.as_str(), path) {
            ("GET", "/") => Ok(HELP.into()),
            ("GET", "/health") => Ok(json!({ "ok": true })),
            ("GET", "/metrics") => Ok(sim.journal.metrics()),
            ("GET", "/requests/refused") => Ok(json!(sim.journal.refused())),
            ("GET", "/requests/failed") => Ok(json!(sim.journal.failed())),
            ("DELETE", "/requests") => {
                sim.journal.clear();
                Ok(done)
            }
            ("GET", "/world") => Ok(json!(sim.start())),
            ("PUT", "/world") => {
                let text =
                    std::str::from_utf8(body).map_err(|error| Trouble::bad(error.to_string()))?;
                sim.replace_world(WorldDoc::parse(text)?)?;
                Ok(done)
            }
            ("GET", "/clients") => Ok(self.clients.clone()),
            ("POST", "/clock") => {
                sim.clock = clock(&parse(body)?)?;
                Ok(done)
            }
            ("POST", "/lifetimes") => {
                sim.lifetimes = lifetimes(parse(body)?)?;
                Ok(done)
            }
            ("POST", "/connections") => {
                sim.connection_rules = parse::<ConnectionRules>(body)?;
                drop(sim);
                self.service.look_again();
                Ok(done)
            }
            ("POST", "/connections/close") => {
                drop(sim);
                self.service.close_connections();
                Ok(done)
            }
            ("POST", "/keys") => change_key(&mut sim, &parse(body)?).map(|()| done),
            ("POST", "/credentials") => change_credential(&mut sim, &parse(body)?).map(|()| done),
            ("POST", "/accounts") => change_account(&mut sim, &parse(body)?).map(|()| done),
            ("POST", "/claims") => {
                let order: ClaimsOrder = parse(body)?;
                if !sim
                    .world
                    .azure
                    .set_claims(&order.vault, order.claims.as_deref())
                {
                    return Err(Trouble::not_found("vault of that name"));
                }
                Ok(done)
            }
            ("POST", "/replays") => {
                sim.world.azure.refuse_replays = parse::<ReplayOrder>(body)?.refuse;
                Ok(done)
            }
            ("POST", "/aws-errors") => {
                sim.world.aws.error_style = parse::<StyleOrder>(body)?.style;
                Ok(done)
            }
            ("POST", "/reset") => {
                sim.reset()?;
                for rule in &self.rules {
                    take(&mut sim, rule).map_err(Trouble::bad)?;
                }
                Ok(done)
            }
            (method, path) => rule(&mut sim, method, path, body),
        }
    }
}

/// Takes a rule as the control API would.
pub(crate) fn take(sim: &mut Sim, rule: &Rule) -> Result<(), String> {
    let (path, body) = match rule {
        Rule::Latency(json) => ("/latency", json),
        Rule::Quota(json) => ("/quota", json),
        Rule::Fault(json) => ("/faults", json),
    };
    match self::rule(sim, "POST", path, body.as_bytes()) {
        Ok(_) => Ok(()),
        Err(Trouble(_, why)) => Err(why),
    }
}

/// Orders about latency, quota and faults.
fn rule(sim: &mut Sim, method: &str, path: &str, body: &[u8]) -> Result<Value, Trouble> {
    let knobs = &mut sim.knobs;
    let done = json!({ "done": true });
    match (method, path) {
        ("POST", "/latency") => knobs.add_latency(parse::<LatencyRule>(body)?)?,
        ("POST", "/quota") => knobs.add_quota(parse::<QuotaRule>(body)?)?,
        ("POST", "/faults") => {
            return Ok(json!({ "id": knobs.add_fault(parse::<FaultRule>(body)?)? }));
        }
        ("DELETE", "/latency") => knobs.clear_latency(),
        ("DELETE", "/quota") => knobs.clear_quotas(),
        ("DELETE", "/faults") => knobs.clear_faults(),
        ("GET", "/latency") => return Ok(json!(knobs.latency().collect::<Vec<_>>())),
        ("GET", "/quota") => return Ok(json!(knobs.quotas().collect::<Vec<_>>())),
        ("GET", "/faults") => return Ok(json!(knobs.faults())),
        ("DELETE", path) => {
            let id = path.strip_prefix("/faults/").and_then(|id| id.parse().ok());
            if !id.is_some_and(|id| knobs.remove_fault(id)) {
                return Err(Trouble::not_found("such thing to delete"));
            }
        }
        _ => return Err(Trouble::not_found("such path; GET / tells which there are")),
    }
    Ok(done)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Trouble> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| Trouble::bad(error.to_string()))
}

/// Longest life of a token, in seconds: ten years, past which nobody waits.
const LIFETIME_S_MAX: u64 = 315_360_000;

fn lifetimes(lifetimes: Lifetimes) -> Result<Lifetimes, Trouble> {
    let Lifetimes {
        aws_session_s,
        gcp_token_s,
        azure_token_s,
        azure_refresh_in_s: _,
        thales_token_s,
    } = lifetimes;
    let longest = [gcp_token_s, azure_token_s, thales_token_s]
        .into_iter()
        .chain(aws_session_s)
        .max();
    if longest > Some(LIFETIME_S_MAX) {
        return Err(Trouble::bad("a token lives ten years at most"));
    }
    Ok(lifetimes)
}

fn clock(order: &ClockOrder) -> Result<Clock, Trouble> {
    match (order.skew_s, order.frozen_unix_s) {
        (Some(_), Some(_)) => Err(Trouble::bad("a clock is skewed or frozen, not both")),
        (skew_s, None) => Ok(Clock::Skewed(skew_s.unwrap_or(0))),
        (None, Some(seconds)) => SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .map(Clock::Frozen)
            .ok_or_else(|| Trouble::bad("no such time")),
    }
}

fn change_key(sim: &mut Sim, order: &KeyOrder) -> Result<(), Trouble> {
    let found = match order.provider {
        Provider::Aws => change_aws_key(sim, order),
        Provider::Gcp => change_gcp_key(sim, order),
        Provider::Azure => change_azure_key(sim, order)?,
        Provider::Thales => change_thales_key(sim, order),
    };
    if found == 0 {
        return Err(Trouble::not_found("key of that name"));
    }
    Ok(())
}

fn change_aws_key(sim: &mut Sim, order: &KeyOrder) -> usize {
    let mut found = 0;
    for key in sim.world.aws.keys_named(&order.key) {
        match order.action {
            KeyAction::Enable | KeyAction::Recover | KeyAction::Unexpire => {
                key.doc.state = AwsKeyState::Enabled;
            }
            KeyAction::Disable => key.doc.state = AwsKeyState::Disabled,
            KeyAction::Delete => key.doc.state = AwsKeyState::Deleted,
            KeyAction::ScheduleDeletion => key.doc.state = AwsKeyState::PendingDeletion,
            // Imported material expires, and then waits for a new import.
            KeyAction::Expire => key.doc.state = AwsKeyState::PendingImport,
            KeyAction::Rotate => key.rotate(),
            KeyAction::Deny => key.denied.set(order.operation, true),
            KeyAction::Allow => key.denied.set(order.operation, false),
        }
        found += 1;
    }
    found
}

fn change_gcp_key(sim: &mut Sim, order: &KeyOrder) -> usize {
    let version = order.number();
    let mut found = 0;
    for key in sim.world.gcp.keys_named(&order.key) {
        match order.action {
            KeyAction::Enable | KeyAction::Recover | KeyAction::Unexpire => {
                key.set_state(version, GcpVersionState::Enabled);
            }
            KeyAction::Disable | KeyAction::Expire => {
                key.set_state(version, GcpVersionState::Disabled);
            }
            KeyAction::Delete => key.set_state(version, GcpVersionState::Destroyed),
            KeyAction::ScheduleDeletion => {
                key.set_state(version, GcpVersionState::DestroyScheduled);
            }
            KeyAction::Rotate => key.rotate(),
            KeyAction::Deny => key.denied.set(order.operation, true),
            KeyAction::Allow => key.denied.set(order.operation, false),
        }
        found += 1;
    }
    found
}

fn change_thales_key(sim: &mut Sim, order: &KeyOrder) -> usize {
    let version = order.number();
    let id = sim.id::<32>();
    sim.world
        .thales
        .change_keys(&order.key, |key| match order.action {
            KeyAction::Enable | KeyAction::Recover | KeyAction::Unexpire => {
                key.set_state(version, ThalesKeyState::Active);
            }
            KeyAction::Disable | KeyAction::Expire => {
                key.set_state(version, ThalesKeyState::Deactivated);
            }
            KeyAction::Delete => key.set_state(version, ThalesKeyState::Destroyed),
            KeyAction::ScheduleDeletion => key.set_state(version, ThalesKeyState::Compromised),
            KeyAction::Rotate => key.rotate(id.clone()),
            KeyAction::Deny => key.denied.set(order.operation, true),
            KeyAction::Allow => key.denied.set(order.operation, false),
        })
}

fn change_azure_key(sim: &mut Sim, order: &KeyOrder) -> Result<usize, Trouble> {
    let version = order.version.as_ref().and_then(Value::as_str);
    let id = sim.id::<16>();
    let mut found = 0;
    for key in sim.world.azure.keys_named(&order.key) {
        match order.action {
            KeyAction::Enable => key.set_enabled(version, true),
            KeyAction::Disable => key.set_enabled(version, false),
            KeyAction::Delete => key.doc.state = AzureKeyState::Deleted,
            KeyAction::Recover => key.doc.state = AzureKeyState::Active,
            // Between deleted and recovered.
            KeyAction::ScheduleDeletion => key.doc.state = AzureKeyState::Recovering,
            KeyAction::Expire => key.set_expiry(Some(1)),
            KeyAction::Unexpire => key.set_expiry(None),
            KeyAction::Deny => key.denied.set(order.operation, true),
            KeyAction::Allow => key.denied.set(order.operation, false),
            KeyAction::Rotate => {
                if !key.rotate(id.clone()) {
                    return Err(Trouble::bad("the key has too many versions"));
                }
            }
        }
        found += 1;
    }
    Ok(found)
}

fn change_credential(sim: &mut Sim, order: &CredentialOrder) -> Result<(), Trouble> {
    let name = order.credential.as_str();
    let world = &mut sim.world;
    let state = match order.action {
        CredentialAction::Activate => Some(CredentialState::Active),
        CredentialAction::Disable => Some(CredentialState::Disabled),
        CredentialAction::Revoke => Some(CredentialState::Revoked),
        CredentialAction::RevokeTokens => None,
    };
    let found = match (order.provider, state) {
        (Provider::Aws, Some(state)) => world.aws.set_credential(name, state),
        (Provider::Gcp, Some(state)) => world.gcp.set_credential(name, state),
        (Provider::Azure, Some(state)) => world.azure.set_credential(name, state),
        (Provider::Thales, Some(state)) => world.thales.set_credential(name, state),
        (Provider::Aws, None) => world.aws.revoke_tokens(name),
        (Provider::Gcp, None) => world.gcp.revoke_tokens(name),
        (Provider::Azure, None) => world.azure.revoke_tokens(name),
        (Provider::Thales, None) => world.thales.revoke_tokens(name),
    };
    if !found {
        return Err(Trouble::not_found("credential of that name"));
    }
    Ok(())
}

fn change_account(sim: &mut Sim, order: &AccountOrder) -> Result<(), Trouble> {
    let name = order.account.as_str();
    let world = &mut sim.world;
    let found = match (order.provider, order.action) {
        (Provider::Aws, AccountAction::Close) => world.aws.set_account(name, true),
        (Provider::Aws, AccountAction::Reopen) => world.aws.set_account(name, false),
        (Provider::Gcp, AccountAction::Close) => world
            .gcp
            .set_project(name, GcpProjectState::BillingDisabled),
        (Provider::Gcp, AccountAction::Suspend) => {
            world.gcp.set_project(name, GcpProjectState::Suspended)
        }
        (Provider::Gcp, AccountAction::DisableService) => world
            .gcp
            .set_project(name, GcpProjectState::ServiceDisabled),
        (Provider::Gcp, AccountAction::Reopen) => {
            world.gcp.set_project(name, GcpProjectState::Active)
        }
        (Provider::Azure, AccountAction::Close) => world
            .azure
            .set_vault(name, AzureVaultState::SubscriptionDisabled),
        (Provider::Azure, AccountAction::Firewall) => {
            world.azure.set_vault(name, AzureVaultState::Firewalled)
        }
        (Provider::Azure, AccountAction::Delete) => {
            world.azure.set_vault(name, AzureVaultState::Deleted)
        }
        (Provider::Azure, AccountAction::Reopen) => {
            world.azure.set_vault(name, AzureVaultState::Active)
        }
        (Provider::Thales, AccountAction::Close) => {
            world.thales.licensed = false;
            true
        }
        (Provider::Thales, AccountAction::Reopen) => {
            world.thales.licensed = true;
            true
        }
        _ => return Err(Trouble::bad("this provider has no such action")),
    };
    if !found {
        return Err(Trouble::not_found("account of that name"));
    }
    Ok(())
}
