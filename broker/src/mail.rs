//! Mail, as plain text over SMTP: invitations, and notifications of what was done in an organization.
//!
//! No request waits for a mail server: a mail goes into a queue, and one task sends them one after the other. What does not fit into
//! the queue, or cannot be sent after some attempts, is given up and logged. A link is always shown to whoever made it, and the
//! audit trail has every change, so a mail that is lost is an inconvenience.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::Uri;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc;
use tsp_wire::Secret;

use crate::{clock, store::Store};

/// Mails that may wait: an hour of a busy vendor's, while its mail server restarts.
const QUEUE_MAX: usize = 1_000;

/// Longest time for one mail.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Attempts for one mail, while the server says that a later one may help, or does not answer.
const ATTEMPTS_MAX: u32 = 3;

/// How long to wait before another attempt.
const ATTEMPT_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked what was done; all that was, makes one mail.
const NOTIFY_EVERY: Duration = Duration::from_secs(10);

/// Lines of an audit trail in one mail.
pub(crate) const LINES_MAX: i64 = 100;

/// What is older is no news, in seconds: mail was switched on, or the service was off.
pub(crate) const NEWS_S: i64 = 60 * 60;

/// How mail is sent.
#[derive(Debug)]
pub struct MailConfig {
    /// `smtps://user:password@host[:port]`, or `smtp://…?tls=required` for STARTTLS. Plain `smtp://` for this machine alone.
    pub smtp_url: Secret<String>,
    /// A file in PEM: whom to trust instead of the public authorities.
    pub smtp_ca: Option<PathBuf>,
    /// Whom mails are from: an address, or `Name <address>`.
    pub from: String,
    /// The broker's own URL, for links.
    pub public_url: String,
}

/// Takes mails. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Mail {
    queue: mpsc::Sender<Message>,
    from: Mailbox,
    public_url: Arc<str>,
}

impl Mail {
    /// Starts the task that sends.
    ///
    /// # Errors
    /// A sentence, without the URL, which has a password.
    pub(crate) fn start(config: &MailConfig) -> Result<Self, String> {
        let url = config.smtp_url.expose();
        let local = ["smtp://127.", "smtp://localhost", "smtp://[::1]"];
        let plain = url.starts_with("smtp://") && !url.contains("tls=required");
        if plain && !local.iter().any(|local| url.starts_with(local)) {
            return Err(
                "plain smtp:// is for this machine alone: use smtps://, or ?tls=required"
                    .to_owned(),
            );
        }
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)
            .map_err(|_| "the SMTP server's URL is none".to_owned())?;
        if let Some(path) = &config.smtp_ca {
            if plain {
                return Err("whom to trust goes with smtps://, or ?tls=required".to_owned());
            }
            transport = transport.tls(tls_of(url, path)?);
        }
        let transport = transport.timeout(Some(SEND_TIMEOUT)).build();
        let from = config.from.parse();
        let from = from.map_err(|_| "the sender of mails is no address".to_owned())?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(deliver(transport, waiting));
        Ok(Self {
            queue,
            from,
            public_url: config.public_url.trim_end_matches('/').into(),
        })
    }

    /// Puts a mail into the queue. False if it will not be sent.
    pub(crate) fn send(&self, to: &str, subject: &str, body: String) -> bool {
        let mut id = [0; 16];
        let message = to.parse().ok().and_then(|to: Mailbox| {
            getrandom::fill(&mut id).ok()?;
            let id = format!(
                "<{:032x}@{}>",
                u128::from_be_bytes(id),
                self.from.email.domain()
            );
            let message = Message::builder().from(self.from.clone()).to(to);
            let message = message.message_id(Some(id)).subject(one_line(subject));
            message.header(ContentType::TEXT_PLAIN).body(body).ok()
        });
        let Some(message) = message else {
            tracing::warn!("a mail cannot be written to this address");
            return false;
        };
        let taken = self.queue.try_send(message).is_ok();
        if !taken {
            tracing::warn!("too many mails wait: one is given up");
        }
        taken
    }

    /// The link of an invitation. It lacks the invitation's key, which the broker does not have.
    pub(crate) fn link(&self, token: &str, fingerprint: &str) -> String {
        format!("{}/invitation#{token}.{fingerprint}", self.public_url)
    }
}

/// TLS as `url` wants it, with a server whose certificate is of the authorities in the file at `path`.
fn tls_of(url: &str, path: &Path) -> Result<Tls, String> {
    let failed = |why: String| format!("{}: {why}", path.display());
    let pem = fs::read(path).map_err(|why| failed(why.to_string()))?;
    let authorities = Certificate::from_pem(&pem).map_err(|why| failed(why.to_string()))?;
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host);
    let host = host.ok_or("the SMTP server's URL is none")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let parameters = TlsParameters::builder(host.to_owned())
        .certificate_store(CertificateStore::None)
        .add_root_certificate(authorities)
        .build()
        .map_err(|why| failed(why.to_string()))?;
    Ok(if url.starts_with("smtps://") {
        Tls::Wrapper(parameters)
    } else {
        Tls::Required(parameters)
    })
}

async fn deliver(
    transport: AsyncSmtpTransport<Tokio1Executor>,
    mut waiting: mpsc::Receiver<Message>,
) {
    while let Some(message) = waiting.recv().await {
        for attempt in 1..=ATTEMPTS_MAX {
            let sent = tokio::time::timeout(SEND_TIMEOUT, transport.send(message.clone())).await;
            let (why, permanent) = match sent {
                Ok(Ok(_)) => {
                    tracing::debug!("a mail was sent");
                    break;
                }
                Ok(Err(why)) => (why.to_string(), why.is_permanent()),
                Err(_) => ("the mail server does not answer".to_owned(), false),
            };
            let last = permanent || attempt == ATTEMPTS_MAX;
            tracing::warn!(error = why, attempt, last, "a mail cannot be sent");
            if last {
                break;
            }
            tokio::time::sleep(ATTEMPT_EVERY).await;
        }
    }
}

/// What people wrote, for a place where a line break would mean something.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// A time for people.
pub(crate) fn readable(at: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at).ok();
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Tells the admins who asked for it what was done in their organizations, for ever.
pub(crate) async fn notify(store: Store, mail: Mail) {
    loop {
        tokio::time::sleep(NOTIFY_EVERY).await;
        let news = match store.take_news(clock::now_s()).await {
            Ok(news) => news,
            Err(why) => {
                tracing::warn!(error = %why, "admins cannot be notified");
                continue;
            }
        };
        for news in news {
            let subject = format!("{}: changes at the configuration broker", news.organization);
            let mut body = String::new();
            for line in &news.lines {
                let _ = writeln!(
                    body,
                    "{} {}: {} {} {}",
                    line.number,
                    readable(line.at),
                    one_line(&line.actor),
                    line.action,
                    one_line(&line.object)
                );
            }
            if news.more > 0 {
                let _ = writeln!(body, "and {} more", news.more);
            }
            body.push_str("\nAll of it: tsp-broker audit list. No more mails: tsp-broker admin notify false\n");
            for admin in &news.admins {
                mail.send(admin, &subject, body.clone());
            }
        }
    }
}
