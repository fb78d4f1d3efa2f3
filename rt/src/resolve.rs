//! Names to addresses, off the cores.
//!
//! The system's resolver blocks for up to half a minute when name servers are silent, and one tenant's name must not keep
//! the others waiting. So one thread takes the questions, joins those for the same name, and hands each name to one of a
//! few threads that do nothing but ask. Everything is bounded; what does not fit is refused at once.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

use crate::{NetError, cores::spawn_helper};

/// Questions and answers that may wait for the thread that sorts them. It never blocks, so this only absorbs bursts.
const MESSAGES_MAX: usize = 1024;

/// Names that may wait for a thread, each once: more endpoints than any set of tenants has.
const NAMES_MAX: usize = 1024;

/// Questions that may be joined to one name: all cores of a large machine, many times over.
const QUESTIONS_PER_NAME_MAX: usize = 4096;

/// Threads that ask. A name whose servers are silent holds one for as long as libc tries.
const THREADS_MAX: usize = 8;

/// Longest name that DNS can express, in bytes, with the final dot.
const NAME_BYTES_MAX: usize = 254;

/// Addresses that are kept of one answer.
const ADDRESSES_MAX: usize = 16;

type Answer = Result<Vec<SocketAddr>, NetError>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    host: String,
    port: u16,
}

enum Message {
    Question(Name, oneshot::Sender<Answer>),
    Answered(Name, Answer),
}

/// Asks for the addresses of `host`; see [`crate::Rt::resolve`].
pub(crate) async fn resolve(host: &str, port: u16) -> Answer {
    if let Some(ip) = literal(host) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    if host.is_empty() || host.len() > NAME_BYTES_MAX {
        return Err(NetError::Unresolved);
    }
    static RESOLVER: OnceLock<Sender<Message>> = OnceLock::new();
    let resolver = RESOLVER.get_or_init(|| start(ask_system));
    question(
        resolver,
        Name {
            host: host.to_owned(),
            port,
        },
    )
    .await
}

/// The address that `host` spells out, if it does; an IPv6 one may stand in brackets, as in URLs.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inside) => inside.parse().ok().map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

async fn question(resolver: &Sender<Message>, name: Name) -> Answer {
    let (asked, answer) = oneshot::channel();
    resolver
        .try_send(Message::Question(name, asked))
        .map_err(|_| NetError::Exhausted)?;
    // Dropped unanswered means refused, for want of room.
    answer.await.unwrap_or(Err(NetError::Exhausted))
}

fn ask_system(name: &Name) -> Answer {
    let mut addresses: Vec<SocketAddr> = (name.host.as_str(), name.port)
        .to_socket_addrs()
        .map_err(|_| NetError::Unresolved)?
        .take(ADDRESSES_MAX)
        .collect();
    addresses.dedup();
    if addresses.is_empty() {
        Err(NetError::Unresolved)
    } else {
        Ok(addresses)
    }
}

/// Starts the thread that sorts. `ask` is the blocking question, asked on threads of its own.
fn start(ask: fn(&Name) -> Answer) -> Sender<Message> {
    let (sender, messages) = crossbeam_channel::bounded(MESSAGES_MAX);
    let desk = Desk {
        waiting: HashMap::new(),
        queue: VecDeque::new(),
        jobs: crossbeam_channel::bounded(0),
        answers: sender.clone(),
        idle: 0,
        threads: 0,
        ask,
    };
    let started = spawn_helper("resolver".to_owned(), move || desk.run(&messages));
    if let Err(error) = started {
        // The queue's other end is gone, so every question is refused.
        tracing::error!("no resolver thread: {error}");
    }
    sender
}

/// All that the sorting thread owns.
struct Desk {
    /// Who waits for which name. A name is in here while it is queued or asked.
    waiting: HashMap<Name, Vec<oneshot::Sender<Answer>>>,
    /// Names that no thread has taken yet.
    queue: VecDeque<Name>,
    /// To the threads that ask; holds nothing, so a job sent is a job taken.
    jobs: (Sender<Name>, Receiver<Name>),
    answers: Sender<Message>,
    /// Threads that have said that they are done, or have not begun.
    idle: usize,
    threads: usize,
    ask: fn(&Name) -> Answer,
}

impl Desk {
    fn run(mut self, messages: &Receiver<Message>) {
        // Never ends: `answers` keeps the channel open. The process does not wait for this thread.
        while let Ok(message) = messages.recv() {
            match message {
                Message::Question(name, asked) => self.take_question(name, asked),
                Message::Answered(name, answer) => {
                    self.idle += 1;
                    for asked in self.waiting.remove(&name).unwrap_or_default() {
                        // Who has given up since does not matter.
                        let _ = asked.send(answer.clone());
                    }
                }
            }
            self.hand_out();
        }
    }

    fn take_question(&mut self, name: Name, asked: oneshot::Sender<Answer>) {
        if let Some(waiting) = self.waiting.get_mut(&name) {
            if waiting.len() < QUESTIONS_PER_NAME_MAX {
                waiting.push(asked);
            }
        } else if self.queue.len() < NAMES_MAX {
            self.queue.push_back(name.clone());
            self.waiting.insert(name, vec![asked]);
        }
        // Else `asked` is dropped, which refuses.
    }

    fn hand_out(&mut self) {
        while let Some(name) = self.queue.pop_front() {
            if self
                .waiting
                .get(&name)
                .is_none_or(|all| all.iter().all(oneshot::Sender::is_closed))
            {
                // All who asked have given up.
                self.waiting.remove(&name);
                continue;
            }
            if self.idle == 0 && !self.start_thread() {
                if self.threads == 0 {
                    // Nobody will ever answer: refuse.
                    self.waiting.remove(&name);
                    continue;
                }
                self.queue.push_front(name);
                return;
            }
            self.idle -= 1;
            if self.jobs.0.send(name).is_err() {
                return;
            }
        }
    }

    /// Starts one more thread that asks, unless there are enough.
    fn start_thread(&mut self) -> bool {
        if self.threads == THREADS_MAX {
            return false;
        }
        let (jobs, answers, ask) = (self.jobs.1.clone(), self.answers.clone(), self.ask);
        let started = spawn_helper(format!("resolver-{}", self.threads), move || {
            for name in jobs {
                let answer = ask(&name);
                if answers.send(Message::Answered(name, answer)).is_err() {
                    return;
                }
            }
        });
        if let Err(error) = started {
            tracing::error!("no further resolver thread: {error}");
            return false;
        }
        self.threads += 1;
        self.idle += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Resolves, blocking the test's thread.
    fn wait(answer: impl Future<Output = Answer>) -> Answer {
        crate::run_here(|_| answer).unwrap()
    }

    fn poll_once(future: std::pin::Pin<&mut impl Future<Output = Answer>>) -> Poll<Answer> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn name(host: &str) -> Name {
        Name {
            host: host.to_owned(),
            port: 443,
        }
    }

    #[test]
    fn ip_literals_are_answered_without_a_thread() {
        for (host, address) in [
            ("127.0.0.1", "127.0.0.1:443"),
            ("::1", "[::1]:443"),
            ("[2001:db8::7]", "[2001:db8::7]:443"),
        ] {
            let answer = poll_once(pin!(resolve(host, 443)));
            assert_eq!(answer, Poll::Ready(Ok(vec![address.parse().unwrap()])));
        }
        assert_eq!(literal("[127.0.0.1]"), None);
        assert_eq!(literal("[::1"), None);
    }

    #[test]
    fn localhost_is_found_and_a_name_that_cannot_exist_is_not() {
        let addresses = wait(resolve("localhost", 80)).unwrap();
        assert!(
            addresses
                .iter()
                .all(|a| a.ip().is_loopback() && a.port() == 80)
        );
        assert_eq!(wait(resolve("", 80)), Err(NetError::Unresolved));
        assert_eq!(
            wait(resolve(&"a".repeat(300), 80)),
            Err(NetError::Unresolved)
        );
        assert_eq!(wait(resolve("nul\0byte", 80)), Err(NetError::Unresolved));
    }

    #[test]
    fn a_name_that_hangs_does_not_keep_the_others_waiting_and_is_asked_once() {
        static HANGING: AtomicUsize = AtomicUsize::new(0);
        let desk = start(|name| {
            if name.host == "silent" {
                HANGING.fetch_add(1, Ordering::SeqCst);
                // Until the process ends.
                loop {
                    std::thread::park();
                }
            }
            Ok(vec![SocketAddr::from(([192, 0, 2, 1], name.port))])
        });
        let mut hanging: Vec<_> = (0..THREADS_MAX + 1)
            .map(|_| Box::pin(question(&desk, name("silent"))))
            .collect();
        assert!(
            hanging
                .iter_mut()
                .all(|answer| poll_once(answer.as_mut()).is_pending())
        );
        for n in 0..20 {
            assert!(wait(question(&desk, name(&format!("good-{n}")))).is_ok());
        }
        assert_eq!(HANGING.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn more_names_than_have_room_are_refused_at_once() {
        // No thread is ever started: the desk is driven by hand.
        let (answers, _) = crossbeam_channel::bounded(1);
        let mut desk = Desk {
            waiting: HashMap::new(),
            queue: VecDeque::new(),
            jobs: crossbeam_channel::bounded(0),
            answers,
            idle: 0,
            threads: THREADS_MAX,
            ask: |_| Err(NetError::Unresolved),
        };
        let mut answers = Vec::new();
        for n in 0..=NAMES_MAX {
            let (asked, answer) = oneshot::channel();
            desk.take_question(name(&n.to_string()), asked);
            answers.push(answer);
        }
        assert!(
            answers
                .pop()
                .unwrap()
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
        );
        assert!(
            answers
                .pop()
                .unwrap()
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
    }
}
