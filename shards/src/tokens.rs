//! Tokens of the tenants' credentials: one fetch per credential and process, shared by all shards.
//!
//! Each credential has a home: the shard that its hash names. Whoever needs a token asks there, by mailbox; the home
//! fetches it once however many ask, and sends it to every shard's own table. A token is renewed ahead of its end by the
//! first use after that time, in the background: no operation with a good token waits. Credentials that nobody uses are
//! not renewed. A refusal is remembered for a few seconds, so that a revoked credential costs its KMS next to nothing.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fmt, mem,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tsp_kms::{
    Blame, CredentialId, Kms, KmsError, KmsOperation, RemoteKms, Retry, Session, Signed, Token,
    TokenStep,
};
use tsp_rt::Rt;

use crate::{
    peers::{Exchange, Peers},
    upstream::Upstream,
};

/// How long a refusal of a credential is remembered.
const REFUSAL_LIFE: Duration = Duration::from_secs(5);

/// How long it is remembered that a token could not be fetched for a reason that may pass.
const FAILURE_LIFE: Duration = Duration::from_secs(1);

/// Least time between two tries to renew a token that still serves.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// Longest time for the fetch of a token, all its calls included: what an operation has in all.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it is taken for granted that a fetch still runs, or that the home's answer will come. After that another is
/// begun: one that died must not leave its credential without a token for good.
const FETCH_LIFE: Duration = Duration::from_secs(10);

/// Calls that one fetch may take: a refresh that is refused, a login, a repair of the clock, and one to spare.
const FETCH_STEPS_MAX: usize = 6;

/// A token as operations hold it: a count of its own on each core.
pub(crate) type SharedToken = Rc<Arc<Token>>;

/// What shards tell each other about tokens.
#[derive(Debug)]
pub(crate) enum Message {
    /// To a credential's home: a token is needed.
    Ask(Ask),
    /// To a shard: what came of it.
    Have(CredentialId, Result<Arc<Token>, KmsError>),
}

#[derive(Debug)]
pub(crate) struct Ask {
    credential: CredentialId,
    kms: Arc<Kms>,
    /// The token that the KMS refused, and how.
    refused: Option<(Arc<Token>, KmsError)>,
    from: usize,
}

/// One shard's table of tokens, and the fetching for the credentials whose home it is.
pub(crate) struct Tokens<R: Rt> {
    rt: R,
    upstream: Rc<Upstream<R>>,
    peers: Peers<Message>,
    table: RefCell<HashMap<CredentialId, Entry>>,
    homes: RefCell<HashMap<CredentialId, Home>>,
}

/// What a shard knows about a credential's token.
#[derive(Default)]
struct Entry {
    token: Option<SharedToken>,
    /// The token that the KMS refused, until the home has been told.
    refused: Option<(Arc<Token>, KmsError)>,
    failed: Option<(KmsError, Instant)>,
    /// Until when an answer of the home is waited for, if it has been asked.
    asked: Option<Instant>,
    /// No renewal before this.
    renew_not_before: Option<Instant>,
    waiters: Vec<oneshot::Sender<()>>,
}

/// What a credential's home knows.
#[derive(Default)]
struct Home {
    session: Session,
    last: Option<Arc<Token>>,
    failed: Option<(KmsError, Instant)>,
    /// Until when the fetch that was begun may run, if there is one.
    fetching: Option<Instant>,
}

impl<R: Rt> fmt::Debug for Tokens<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("known", &self.table.borrow().len())
            .finish_non_exhaustive()
    }
}

impl<R: Rt> Tokens<R> {
    /// Makes the table and starts listening to the other shards.
    pub(crate) fn start(rt: R, upstream: Rc<Upstream<R>>, exchange: Exchange<Message>) -> Rc<Self> {
        let Exchange { peers, mut inbox } = exchange;
        let (table, homes) = (RefCell::default(), RefCell::default());
        let tokens = Rc::new(Self {
            rt,
            upstream,
            peers,
            table,
            homes,
        });
        let listening = Rc::clone(&tokens);
        tokens.rt.spawn(async move {
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Ask(ask) => listening.asked(ask),
                    Message::Have(credential, result) => listening.learned(credential, result),
                }
            }
        });
        tokens
    }

    /// A good token for `remote`'s credential, or `None` if it needs none. Waits for one no longer than to `deadline`.
    ///
    /// # Errors
    /// What the credential's last fetch met, or that it takes too long.
    pub(crate) async fn get(
        self: &Rc<Self>,
        kms: &Arc<Kms>,
        remote: &dyn RemoteKms,
        deadline: Instant,
    ) -> Result<Option<SharedToken>, KmsError> {
        let Some(credential) = remote.credential() else {
            return Ok(None);
        };
        let now = self.rt.now();
        let waiting = {
            let mut table = self.table.borrow_mut();
            let entry = table.entry(credential).or_default();
            let wall_now = self.rt.wall_now();
            if let Some(token) = entry
                .token
                .as_ref()
                .filter(|token| wall_now < token.expires_at())
            {
                let token = Rc::clone(token);
                let due = wall_now >= token.renew_at()
                    && entry.renew_not_before.is_none_or(|time| now >= time);
                if due && !runs(entry.asked, now) {
                    entry.renew_not_before = Some(now + RENEWAL_PAUSE);
                    self.ask(credential, kms, entry);
                }
                return Ok(Some(token));
            }
            if let Some((why, _)) = entry.failed.as_ref().filter(|(_, until)| now < *until) {
                return Err(why.clone());
            }
            let (give, waiting) = oneshot::channel();
            entry.waiters.push(give);
            if !runs(entry.asked, now) {
                self.ask(credential, kms, entry);
            }
            waiting
        };
        let left = deadline.saturating_duration_since(now);
        // However it ends, the table says what came of it.
        drop(tsp_rt::timeout(&self.rt, left, waiting).await);
        let table = self.table.borrow();
        let entry = table.get(&credential);
        match entry.map(|entry| (&entry.token, &entry.failed)) {
            Some((Some(token), _)) => Ok(Some(Rc::clone(token))),
            Some((None, Some((why, _)))) => Err(why.clone()),
            Some((None, None)) | None => Err(KmsError::unreachable(
                remote.kind(),
                KmsOperation::Token,
                Retry::No,
                Blame::Kms,
                "no token came in time",
            )),
        }
    }

    /// The KMS refused `token`: it is not used again, and the next [`Tokens::get`] brings another.
    pub(crate) fn refused(&self, remote: &dyn RemoteKms, token: &SharedToken, why: &KmsError) {
        let Some(credential) = remote.credential() else {
            return;
        };
        if let Some(entry) = self.table.borrow_mut().get_mut(&credential)
            && entry
                .token
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, token))
        {
            entry.token = None;
            entry.refused = Some((Arc::clone(token), why.clone()));
        }
    }

    /// Forgets the credentials that no KMS config has any more.
    pub(crate) fn retain(&self, configured: &HashSet<CredentialId>) {
        self.table
            .borrow_mut()
            .retain(|credential, _| configured.contains(credential));
        let now = self.rt.now();
        self.homes
            .borrow_mut()
            .retain(|credential, home| runs(home.fetching, now) || configured.contains(credential));
    }

    /// Drops the tokens of these credentials, on this shard.
    pub(crate) fn forget(&self, credentials: &HashSet<CredentialId>) {
        let now = self.rt.now();
        self.table.borrow_mut().retain(|credential, entry| {
            let named = credentials.contains(credential);
            if named {
                entry.token = None;
            }
            !named || runs(entry.asked, now)
        });
        self.homes.borrow_mut().retain(|credential, home| {
            runs(home.fetching, now) || !credentials.contains(credential)
        });
    }

    fn ask(&self, credential: CredentialId, kms: &Arc<Kms>, entry: &mut Entry) {
        let refused = entry.refused.take();
        let ask = Ask {
            credential,
            kms: Arc::clone(kms),
            refused,
            from: self.peers.index,
        };
        let home = self.peers.home(credential.number());
        // A home whose mailbox is full is asked again by the next operation; those that wait now see their deadline.
        let sent = self.peers.send(home, Message::Ask(ask)).is_ok();
        entry.asked = sent.then(|| self.rt.now() + FETCH_LIFE);
    }

    /// As the credential's home: a shard needs a token.
    fn asked(self: &Rc<Self>, ask: Ask) {
        let mut homes = self.homes.borrow_mut();
        let home = homes.entry(ask.credential).or_default();
        if runs(home.fetching, self.rt.now()) {
            // What comes of it goes to all shards.
            return;
        }
        let known = home.last.as_ref().filter(|known| {
            let refused = ask.refused.as_ref().map(|(token, _)| token);
            self.rt.wall_now() < known.renew_at()
                && refused.is_none_or(|refused| !Arc::ptr_eq(known, refused))
        });
        let failed = home
            .failed
            .as_ref()
            .filter(|(_, until)| self.rt.now() < *until);
        let answer = match (known, failed) {
            (Some(known), _) => Some(Ok(Arc::clone(known))),
            (None, Some((why, _))) => Some(Err(why.clone())),
            (None, None) => None,
        };
        if let Some(answer) = answer {
            let tokens = Rc::clone(self);
            let (from, message) = (ask.from, Message::Have(ask.credential, answer));
            self.rt
                .spawn(async move { tokens.peers.deliver(&tokens.rt, from, message).await });
            return;
        }
        home.fetching = Some(self.rt.now() + FETCH_LIFE);
        let (session, last) = (mem::take(&mut home.session), home.last.take());
        let tokens = Rc::clone(self);
        self.rt
            .spawn(async move { tokens.fetch(ask, session, last).await });
    }

    async fn fetch(self: Rc<Self>, ask: Ask, mut session: Session, last: Option<Arc<Token>>) {
        let Kms::Remote(remote) = &*ask.kms else {
            return;
        };
        let refused = ask.refused.map(|(_, why)| why);
        let fetched = self
            .fetch_with(&**remote, last, refused, &mut session)
            .await
            .map(Arc::new);
        if let Err(why) = &fetched {
            tracing::warn!(credential = ?ask.credential, "no token: {why}");
        }
        {
            let mut homes = self.homes.borrow_mut();
            let home = homes.entry(ask.credential).or_default();
            home.session = session;
            home.fetching = None;
            home.last = fetched.as_ref().ok().map(Arc::clone);
            home.failed = fetched.as_ref().err().map(|why| self.remembered(why));
        }
        for shard in 0..self.peers.len() {
            let message = Message::Have(ask.credential, fetched.clone());
            self.peers.deliver(&self.rt, shard, message).await;
        }
    }

    async fn fetch_with(
        &self,
        remote: &dyn RemoteKms,
        mut last: Option<Arc<Token>>,
        mut refused: Option<KmsError>,
        session: &mut Session,
    ) -> Result<Token, KmsError> {
        let deadline = self.rt.now() + FETCH_TIMEOUT;
        let mut tried_again = false;
        for _ in 0..FETCH_STEPS_MAX {
            let why = match self
                .step(remote, last.as_deref(), refused.take(), session, deadline)
                .await
            {
                Ok(token) => return Ok(token),
                Err(why) => why,
            };
            match why.retry() {
                // One way to a token was refused; the provider knows the next, and says `No` when there is none left.
                Retry::AfterNewToken => {
                    last = None;
                    refused = Some(why);
                }
                Retry::AfterClockRepair { .. } if session.repair(&why) => {}
                Retry::Transient if !tried_again => tried_again = true,
                Retry::No
                | Retry::Transient
                | Retry::Throttled { .. }
                | Retry::Later { .. }
                | Retry::AfterClockRepair { .. } => return Err(why),
            }
        }
        Err(KmsError::unreachable(
            remote.kind(),
            KmsOperation::Token,
            Retry::No,
            Blame::Endpoint,
            "its token endpoint asks for ever more steps",
        ))
    }

    async fn step(
        &self,
        remote: &dyn RemoteKms,
        last: Option<&Token>,
        refused: Option<KmsError>,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<Token, KmsError> {
        let step = remote.token_step(last, refused.as_ref(), session, self.rt.wall_now())?;
        let call = match step {
            TokenStep::Call(call) => call,
            TokenStep::Sign(sign) => match self.rt.offload(sign).await {
                Ok(signed) => match signed? {
                    Signed::Token(token) => return Ok(token),
                    Signed::Call(call) => call,
                },
                Err(_) => {
                    return Err(KmsError::unreachable(
                        remote.kind(),
                        KmsOperation::Token,
                        Retry::Transient,
                        Blame::Proxy,
                        "too many signatures wait to be made",
                    ));
                }
            },
        };
        self.upstream.token(remote, *call, deadline).await
    }

    fn learned(&self, credential: CredentialId, result: Result<Arc<Token>, KmsError>) {
        let mut table = self.table.borrow_mut();
        // A shard that never asked may well need it soon.
        let entry = table.entry(credential).or_default();
        entry.asked = None;
        match result {
            Ok(token) => {
                entry.token = Some(Rc::new(token));
                entry.failed = None;
                entry.refused = None;
            }
            // A token that still serves goes on serving.
            Err(why) => entry.failed = Some(self.remembered(&why)),
        }
        for waiter in entry.waiters.drain(..) {
            // Nobody may wait any more.
            let _gone = waiter.send(());
        }
    }

    fn remembered(&self, why: &KmsError) -> (KmsError, Instant) {
        let life = if why.retryable() {
            FAILURE_LIFE
        } else {
            REFUSAL_LIFE
        };
        (why.clone(), self.rt.now() + life)
    }
}

/// Whether what was begun, and may last until `until`, still runs.
fn runs(until: Option<Instant>, now: Instant) -> bool {
    until.is_some_and(|until| now < until)
}
