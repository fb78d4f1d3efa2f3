//! Takes events from the proxies and hands them to the store.
//!
//! A proxy is named by a URL. `tcp://host:port` pulls what it pushes: what is on the way when one of the two dies is lost.
//! `tcp+ack://host:port` asks it for batches that it keeps until the store has them on disk; the proxy has
//! `TSP_EVENTS_ACKNOWLEDGED=true` then. A name that has several addresses stands for as many proxies; it is looked up again
//! and again, and what is new is dialled.
//!
//! What must stay true: while the store takes nothing, nothing is pulled, and the proxies apply their own rule.

mod numbers;

use std::{
    collections::HashMap,
    ffi::CString,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anng::{
    Message,
    protocols::{pipeline0::Pull0, reqrep0::Req0},
};
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tsp_wire::event::{FRAME_VERSION, Take, Taken};

use self::numbers::{Heard, Numbers, Word};
use crate::{
    clock,
    metrics::Metrics,
    store::{Append, Incoming, ProxyBatch, Shard, Shards, Store},
};

/// How often a name is looked up, and how long an address stays that the name has no more.
const LOOKUP_EVERY: Duration = Duration::from_secs(10);
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Addresses of one name at most.
const ADDRESSES_MAX: usize = 256;

/// Bytes of messages between the sockets and the disk, of all proxies. One message that is larger goes alone.
const INFLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest wait for an answer to a question. A proxy answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest and longest pause after an answer without events.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Pause after a proxy did not answer, or said what cannot be read, or while its name cannot be looked up.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    /// A name or an IP address, and a port.
    pub authority: String,
    /// Whether the proxy keeps events until they are acknowledged.
    pub acknowledged: bool,
}

impl Producer {
    /// Reads a list of URLs with commas between.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn list(text: &str) -> Result<Vec<Self>, String> {
        let read = |url: &str| {
            let (authority, acknowledged) = match url.strip_prefix("tcp+ack://") {
                Some(authority) => (authority, true),
                None => (url.strip_prefix("tcp://")?, false),
            };
            let (host, port) = authority.rsplit_once(':')?;
            let sound = !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'@')
                && port.parse::<u16>().is_ok_and(|port| port > 0);
            sound.then(|| Self {
                authority: authority.to_owned(),
                acknowledged,
            })
        };
        let producers: Option<Vec<_>> = text.split(',').map(str::trim).map(read).collect();
        producers.filter(|all| !all.is_empty()).ok_or_else(|| {
            "is not a list of tcp://HOST:PORT or tcp+ack://HOST:PORT with commas between".to_owned()
        })
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    store: Store,
    metrics: Arc<Metrics>,
    inflight: Arc<Semaphore>,
    /// `LOGDRIVER_CHANNEL_TIMEOUT`.
    patience: Duration,
    numbers: mpsc::UnboundedSender<Heard>,
}

/// Takes events until `stop` says so, and everything taken is with the store.
pub async fn run(
    producers: Vec<Producer>,
    store: Store,
    shards: Shards,
    patience: Duration,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) {
    let (numbers, seen) = mpsc::unbounded_channel();
    let counting = count(
        Numbers::new(Arc::clone(&metrics), shards, producers.len()),
        seen,
        store.clone(),
    );
    let shared = Arc::new(Shared {
        store,
        metrics,
        inflight: Arc::new(Semaphore::new(INFLIGHT_BYTES_MAX)),
        patience,
        numbers,
    });
    let mut tasks = JoinSet::new();
    for producer in producers {
        tasks.spawn(follow(producer, Arc::clone(&shared), stop.clone()));
    }
    drop(shared);
    let all = async { while tasks.join_next().await.is_some() {} };
    tokio::join!(counting, all);
}

/// Follows the numbers, and has tenants told of processes that died.
async fn count(mut numbers: Numbers, mut seen: mpsc::UnboundedReceiver<Heard>, store: Store) {
    while let Some(heard) = seen.recv().await {
        let died = numbers.hear(heard);
        if !died.is_empty() {
            let append = Append {
                died,
                ..Append::default()
            };
            // The process is about to end, and its next start will find out.
            let _ = store.append(append).await;
        }
    }
}

/// Keeps a connection to each address of a producer.
async fn follow(producer: Producer, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut connections: HashMap<SocketAddr, (watch::Sender<bool>, Instant)> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut troubled = false;
    // When it was looked up first, until that was long enough ago to have found all addresses.
    let (mut first, mut all_dialled) = (None, false);
    loop {
        let now = clock::monotonic();
        match tokio::net::lookup_host(&producer.authority).await {
            Ok(addresses) => {
                if std::mem::take(&mut troubled) {
                    tracing::info!(producer = producer.authority, "can be looked up again");
                }
                for address in addresses.take(ADDRESSES_MAX) {
                    let connection = connections.entry(address).or_insert_with(|| {
                        tracing::info!(%address, producer = producer.authority, "taking events");
                        // Who counts ends after all who send, here and below.
                        let _ = shared.numbers.send(Heard::Dialled(address));
                        let (cut, is_cut) = watch::channel(false);
                        let shared = Arc::clone(&shared);
                        let acknowledged = producer.acknowledged;
                        tasks.spawn(async move {
                            shared.metrics.producers.inc();
                            if acknowledged {
                                take(address, &shared, is_cut).await;
                            } else {
                                pull(address, &shared, is_cut).await;
                            }
                            shared.metrics.producers.dec();
                        });
                        (cut, now)
                    });
                    connection.1 = now;
                }
                let since = *first.get_or_insert(now);
                if !all_dialled && now.duration_since(since) >= GONE_AFTER {
                    all_dialled = true;
                    let _ = shared.numbers.send(Heard::NameDialled);
                }
            }
            Err(why) => {
                // That says nothing of those that are known.
                if !std::mem::replace(&mut troubled, true) {
                    tracing::warn!(producer = producer.authority, "cannot be looked up: {why}");
                }
                for (_, seen) in connections.values_mut() {
                    *seen = now;
                }
            }
        }
        connections.retain(|address, (cut, seen)| {
            let stays = now.duration_since(*seen) < GONE_AFTER;
            if !stays {
                tracing::info!(%address, producer = producer.authority, "is gone");
                cut.send_replace(true);
                let _ = shared.numbers.send(Heard::Gone(*address));
            }
            stays
        });
        // The name of a proxy that starts later, as a rule.
        let pause = if connections.is_empty() {
            TROUBLE_PAUSE
        } else {
            LOOKUP_EVERY
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(pause) => {}
        }
        while tasks.try_join_next().is_some() {}
    }
    for (cut, _) in connections.values() {
        cut.send_replace(true);
    }
    while tasks.join_next().await.is_some() {}
}

/// Pulls what a proxy pushes.
async fn pull(address: SocketAddr, shared: &Shared, mut cut: watch::Receiver<bool>) {
    let Ok(url) = CString::new(format!("tcp://{address}")) else {
        return;
    };
    let mut socket = match Pull0::dial(url).await {
        Ok(socket) => socket,
        Err(why) => {
            tracing::error!(%address, "cannot be dialled: {why}");
            return;
        }
    };
    loop {
        let message = tokio::select! {
            biased;
            _ = cut.wait_for(|cut| *cut) => return,
            message = socket.pull() => message,
        };
        match message {
            Ok(message) => {
                let append = read(message.as_slice());
                if shared.store(append, message.len(), address).await.is_err() {
                    return;
                }
            }
            Err(why) => {
                tracing::warn!(%address, "no events can be pulled: {why}");
                tokio::time::sleep(TROUBLE_PAUSE).await;
            }
        }
    }
}

/// Asks a proxy for batches, and acknowledges each once it is on disk.
async fn take(address: SocketAddr, shared: &Shared, mut cut: watch::Receiver<bool>) {
    let Ok(url) = CString::new(format!("tcp://{address}")) else {
        return;
    };
    let socket = match Req0::dial(url).await {
        Ok(socket) => socket,
        Err(why) => {
            tracing::error!(%address, "cannot be dialled: {why}");
            return;
        }
    };
    let mut context = socket.context();
    let consumer = shared.store.instance();
    let mut stored = 0;
    let mut pause = PAUSE_MIN;
    let mut troubled = false;
    let mut answering = None;
    loop {
        let more = !*cut.borrow();
        let question = Take {
            consumer,
            stored,
            more,
        };
        let exchange = async {
            let asked = context.request(Message::from(question.to_bytes().as_slice()));
            match asked.await {
                Ok(answer) => answer.await.map_err(|why| why.to_string()),
                Err((why, _)) => Err(why.to_string()),
            }
        };
        // The last acknowledgement need not be heard: the batch would come again, and be known.
        let patience = if more { ANSWER_TIMEOUT } else { TROUBLE_PAUSE };
        let answer = tokio::select! {
            answer = timeout(patience, exchange) => answer,
            _ = cut.wait_for(|cut| *cut), if more => continue,
        };
        if !more {
            return;
        }
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => {
                trouble(address, &mut troubled, &why);
                tokio::time::sleep(TROUBLE_PAUSE).await;
                continue;
            }
            Err(_) => {
                trouble(address, &mut troubled, "it does not answer");
                continue;
            }
        };
        let Some((Taken { instance, batch }, lines)) = Taken::from_bytes(answer.as_slice()) else {
            trouble(
                address,
                &mut troubled,
                "its answer is none: is TSP_EVENTS_ACKNOWLEDGED set there?",
            );
            tokio::time::sleep(TROUBLE_PAUSE).await;
            continue;
        };
        if troubled {
            tracing::info!(%address, "answers again");
            troubled = false;
        }
        if answering != Some(instance) {
            answering = Some(instance);
            let _ = shared.numbers.send(Heard::Process(address, instance));
        }
        if batch == 0 {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = cut.wait_for(|cut| *cut) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        }
        pause = PAUSE_MIN;
        let (done, on_disk) = oneshot::channel();
        let append = Append {
            batch: Some(ProxyBatch {
                instance,
                number: batch,
            }),
            done: Some(done),
            ..read_lines(lines)
        };
        if shared.store(append, lines.len(), address).await.is_err() || on_disk.await.is_err() {
            return;
        }
        stored = batch;
    }
}

fn trouble(address: SocketAddr, troubled: &mut bool, why: &str) {
    if !*troubled {
        *troubled = true;
        tracing::warn!(%address, "no events can be taken: {why}");
    }
}

impl Shared {
    /// Hands a message that came `from` a proxy on, when there is room for it.
    async fn store(
        &self,
        mut append: Append,
        bytes: usize,
        from: SocketAddr,
    ) -> Result<(), crate::store::Gone> {
        let metrics = &self.metrics;
        let now_ms = clock::now_ms();
        let mut numbers = Vec::with_capacity(append.events.len());
        append.events.retain(|event| {
            let word = Word::of(event);
            if let Some(Word::Lost(count)) = word {
                metrics.lost.inc_by(count);
            }
            let ended = word == Some(Word::Ended);
            if let Some(sequence) = event.sequence {
                numbers.push(sequence);
                // Applications say themselves when something happened.
                let event_ms = event.timestamp_ms.min(now_ms);
                let key = (sequence.instance, sequence.shard);
                let next = sequence.number.saturating_add(1);
                let shard = append.shards.entry(key).or_insert(Shard {
                    address: from,
                    next,
                    event_ms,
                    ended,
                });
                shard.next = next.max(shard.next);
                shard.event_ms = event_ms.max(shard.event_ms);
                shard.ended |= ended;
            }
            // That a shard has ended is meant for us, and nobody's event.
            !ended
        });
        let heard = Heard::Numbers {
            from,
            numbers,
            shards: append.shards.clone(),
        };
        let _ = self.numbers.send(heard);
        let events = append.events.len() + append.strange.len();
        if events == 0 && append.batch.is_none() && append.shards.is_empty() {
            return Ok(());
        }
        metrics
            .received
            .inc_by(u64::try_from(events).unwrap_or(u64::MAX));
        let room = u32::try_from(bytes.min(INFLIGHT_BYTES_MAX)).unwrap_or(u32::MAX);
        let handing = async {
            let inflight = Arc::clone(&self.inflight);
            append.room = inflight.acquire_many_owned(room).await.ok();
            self.store.append(append).await
        };
        let mut handing = std::pin::pin!(handing);
        match timeout(self.patience, &mut handing).await {
            Ok(handed) => handed,
            Err(_) => {
                // It is not given up: what was taken from a proxy is kept.
                metrics.stalls.inc();
                handing.await
            }
        }
    }
}

/// The events of a pushed message.
fn read(message: &[u8]) -> Append {
    match message.split_first() {
        Some((&FRAME_VERSION, lines)) => read_lines(lines),
        _ => Append {
            strange: vec![Bytes::copy_from_slice(message)],
            ..Append::default()
        },
    }
}

fn read_lines(lines: &[u8]) -> Append {
    let lines = Bytes::copy_from_slice(lines);
    let mut append = Append::default();
    for line in lines.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        let line = lines.slice_ref(line);
        match Incoming::read(line.clone()) {
            Some(event) => append.events.push(event),
            None => append.strange.push(line),
        }
    }
    append
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_are_a_list_of_urls() {
        let list = Producer::list("tcp://localhost:5555, tcp+ack://[::1]:5556").unwrap();
        let told: Vec<_> = list
            .iter()
            .map(|producer| (producer.authority.as_str(), producer.acknowledged))
            .collect();
        assert_eq!(told, [("localhost:5555", false), ("[::1]:5556", true)]);
        for bad in [
            "",
            "localhost:5555",
            "tcp://localhost",
            "tcp://:5555",
            "tcp://a:0",
            "tcp://a:1,",
        ] {
            assert!(Producer::list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_message_of_another_version_is_kept_whole() {
        let append = read(b"\x02{}");
        assert_eq!(append.strange, [Bytes::from_static(b"\x02{}")]);
        let append = read(b"\x01nonsense\n\n{}");
        assert_eq!(append.strange.len(), 2);
    }
}
