use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{Listener, Stream, mailbox, timeout, yield_now};

const SECOND: Duration = Duration::from_secs(1);
const SEEDS: u64 = 50;

fn server() -> SocketAddr {
    "10.0.0.2:443".parse().unwrap()
}

async fn pair(rt: &SimRt) -> (SimStream, SimStream) {
    let mut listener = rt.bind(server()).unwrap();
    let near = rt.connect(server(), SECOND).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far)
}

/// Answers every line with itself, on every connection.
fn spawn_echo(rt: &SimRt) {
    let mut listener = rt.bind(server()).unwrap();
    let rt = rt.clone();
    rt.clone().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            rt.spawn(async move {
                let mut bytes = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// What a failing run says.
fn failure(run: impl FnOnce()) -> String {
    panic_text(catch_unwind(AssertUnwindSafe(run)).unwrap_err().as_ref())
}

/// A busy run, written down step by step.
fn trace(seed: u64) -> Vec<String> {
    Sim::new(seed).run(async |rt| {
        spawn_echo(&rt);
        let trace = Rc::new(RefCell::new(Vec::new()));
        let (done, mut dones) = mailbox::bounded(8);
        for name in 0..8 {
            let (rt, trace, done) = (rt.clone(), Rc::clone(&trace), done.clone());
            rt.clone().spawn(async move {
                let mut key = [0; 4];
                rt.random(&mut key);
                let mut stream = rt.connect(server(), SECOND).await.unwrap();
                for round in 0..5 {
                    stream
                        .write_all(b"some forty bytes or so, to be cut up....")
                        .await
                        .unwrap();
                    let mut left = 40;
                    while left > 0 {
                        let count = stream.read(&mut [0; 64]).await.unwrap();
                        left -= count;
                        let at = rt.elapsed();
                        trace
                            .borrow_mut()
                            .push(format!("{name} {round} {count} {at:?} {key:?}"));
                    }
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..8 {
            dones.recv().await.unwrap();
        }
        trace.take()
    })
}

#[test]
fn one_seed_gives_one_run_and_another_seed_another() {
    let mut seen = HashSet::new();
    for seed in 0..SEEDS {
        let first = trace(seed);
        assert_eq!(first, trace(seed), "seed {seed}");
        assert!(seen.insert(first), "seed {seed}");
    }
}

#[test]
fn tasks_that_can_run_run_in_any_order() {
    let orders: HashSet<_> = (0..SEEDS)
        .map(|seed| {
            Sim::new(seed).run(async |rt| {
                let order = Rc::new(RefCell::new(Vec::new()));
                for n in 0..3 {
                    let order = Rc::clone(&order);
                    rt.spawn(async move { order.borrow_mut().push(n) });
                }
                while order.borrow().len() < 3 {
                    yield_now().await;
                }
                order.take()
            })
        })
        .collect();
    assert_eq!(orders.len(), 6);
}

#[test]
fn a_day_passes_in_no_time_and_both_clocks_agree() {
    Sim::new(1).run(async |rt| {
        let (monotonic, wall) = (rt.now(), rt.wall_now());
        assert!(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap() - WALL_EPOCH < SECOND);
        let day = SECOND * 86_400;
        rt.sleep(day).await;
        assert!(rt.now() - monotonic >= day);
        assert!(rt.now() - monotonic < day + SECOND);
        assert_eq!(
            rt.wall_now().duration_since(wall).unwrap(),
            rt.now() - monotonic
        );
    });
}

#[test]
fn timers_fire_in_order_and_a_dropped_one_does_not() {
    Sim::new(1).run(async |rt| {
        let forever = rt.sleep(Duration::MAX);
        assert_eq!(timeout(&rt, SECOND, forever).await, Err(NetError::Timeout));
        let (first, second) = (rt.sleep(SECOND * 2), rt.sleep(SECOND));
        let begin = rt.elapsed();
        second.await;
        assert!(rt.elapsed() - begin < SECOND * 2);
        first.await;
        assert!(rt.elapsed() - begin >= SECOND * 2);
        assert_eq!(rt.world.events.borrow().next_time(), None);
    });
}

#[test]
fn a_loop_that_yields_until_a_time_sees_it_come() {
    Sim::new(1).run(async |rt| {
        let end = rt.now() + Duration::from_millis(5);
        while rt.now() < end {
            yield_now().await;
        }
    });
}

#[test]
fn a_failure_of_the_main_future_names_the_seed() {
    let text = failure(|| Sim::new(77).run(async |_| panic!("the answer was wrong")));
    assert!(
        text.contains("seed 77") && text.contains("the answer was wrong"),
        "{text}"
    );
}

#[test]
fn a_failure_of_a_task_fails_the_run_unless_caught() {
    let run = |sim: Sim| {
        sim.run(async |rt| {
            rt.spawn(async { panic!("in a task") });
            rt.sleep(SECOND).await;
            assert_eq!(rt.task_count(), 0);
        });
    };
    let text = failure(|| run(Sim::new(5)));
    assert!(
        text.contains("seed 5") && text.contains("in a task"),
        "{text}"
    );
    run(Sim::new(5).catch_task_panics());
}

#[test]
fn a_deadlock_fails_the_run() {
    let text = failure(|| {
        Sim::new(6).run(async |rt| {
            rt.spawn(std::future::pending());
            std::future::pending::<()>().await;
        });
    });
    assert!(
        text.contains("seed 6") && text.contains("deadlock"),
        "{text}"
    );
    assert!(text.contains("1 tasks wait"), "{text}");
}

#[test]
fn a_loop_that_never_waits_fails_the_run() {
    let text = failure(|| {
        Sim::new(7).steps_max(1000).run(async |_| {
            loop {
                yield_now().await;
            }
        });
    });
    assert!(
        text.contains("seed 7") && text.contains("1000 steps"),
        "{text}"
    );
}

#[test]
fn tasks_left_behind_are_dropped_and_may_use_the_runtime_while_they_are() {
    struct UsesRt(SimRt, Rc<Cell<bool>>);
    impl Drop for UsesRt {
        fn drop(&mut self) {
            self.0.spawn(async {});
            drop(self.0.sleep(SECOND));
            self.1.set(true);
        }
    }
    let dropped = Rc::new(Cell::new(false));
    Sim::new(8).run(async |rt| {
        let held = UsesRt(rt.clone(), Rc::clone(&dropped));
        let (near, far) = pair(&rt).await;
        rt.spawn(async move {
            let _held = (held, near, far);
            std::future::pending::<()>().await;
        });
        yield_now().await;
    });
    assert!(dropped.get());
    assert_eq!(Rc::strong_count(&dropped), 1);
}

#[test]
fn bytes_arrive_in_order_whole_and_after_the_latency() {
    for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt| {
            rt.net().set_link(
                server(),
                Link {
                    latency: SECOND..=SECOND * 3,
                    ..Link::default()
                },
            );
            let mut listener = rt.bind(server()).unwrap();
            let begin = rt.elapsed();
            let mut near = rt.connect(server(), SECOND * 10).await.unwrap();
            assert!(rt.elapsed() - begin >= SECOND * 2);
            let (mut far, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.unwrap().ip(), HOST);
            let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
            let expected = sent.clone();
            rt.spawn(async move {
                near.write_all(&sent).await.unwrap();
                near.shutdown().await.unwrap();
                // Half closed: the other direction still works.
                let mut answer = String::new();
                near.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, "got it");
            });
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            assert!(received == expected);
            far.write_all(b"got it").await.unwrap();
            drop(far);
            rt.sleep(SECOND * 20).await;
            assert_eq!(rt.task_count(), 0);
            assert_eq!(rt.net().connection_count(server()), 0);
            assert_eq!(rt.net().connected_total(server()), 1);
        });
    });
}

#[test]
fn a_writer_waits_when_nobody_reads() {
    Sim::new(1).run(async |rt| {
        let (mut near, mut far) = pair(&rt).await;
        let too_much = vec![7; 300_000];
        let stuck = timeout(&rt, SECOND, near.write_all(&too_much)).await;
        assert_eq!(stuck.unwrap_err(), NetError::Timeout);
        let mut some = vec![0; 50_000];
        far.read_exact(&mut some).await.unwrap();
        timeout(&rt, SECOND, near.write_all(&some[..20_000]))
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn nobody_there_is_refused_and_a_black_hole_times_out() {
    Sim::new(1).run(async |rt| {
        assert_eq!(
            rt.connect(server(), SECOND).await.unwrap_err(),
            NetError::Refused
        );
        let _listener = rt.bind(server()).unwrap();
        rt.net()
            .change_link(server(), |link| link.connecting = Connecting::Refuse);
        assert_eq!(
            rt.connect(server(), SECOND).await.unwrap_err(),
            NetError::Refused
        );
        rt.net()
            .change_link(server(), |link| link.connecting = Connecting::BlackHole);
        let begin = rt.elapsed();
        assert_eq!(
            rt.connect(server(), SECOND).await.unwrap_err(),
            NetError::Timeout
        );
        assert!(rt.elapsed() - begin >= SECOND);
        rt.net()
            .change_link(server(), |link| link.connecting = Connecting::Accept);
        rt.connect(server(), SECOND).await.unwrap();
        assert!(
            rt.adopt(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
                .is_err()
        );
    });
}

#[test]
fn a_connection_is_cut_after_exactly_so_many_bytes() {
    for_seeds(SEEDS, |seed| {
        for with in [CutWith::Reset, CutWith::End] {
            Sim::new(seed).run(async |rt| {
                let cut = Cut {
                    direction: Direction::ToClient,
                    after_bytes: 100,
                    with,
                };
                rt.net().change_link(server(), |link| link.cut = Some(cut));
                let (mut near, mut far) = pair(&rt).await;
                rt.spawn(async move {
                    // Ends with an error, or all is swallowed.
                    let _ = far.write_all(&[1; 300]).await;
                    let error = far.read(&mut [0; 1]).await.unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    assert!(far.write(&[1; 1]).await.is_err());
                });
                let mut received = Vec::new();
                let end = near.read_to_end(&mut received).await;
                assert_eq!(received.len(), 100);
                assert_eq!(end.is_err(), with == CutWith::Reset);
                rt.sleep(SECOND).await;
                assert_eq!(rt.task_count(), 0);
            });
        }
    });
}

#[test]
fn a_pooled_connection_that_the_far_end_closed_is_stale() {
    for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt| {
            let (mut near, far) = pair(&rt).await;
            let staleness = near.staleness();
            assert!(!near.is_stale());
            drop(far);
            // As on a real network: until the end arrives nobody can know, and a write seems to work.
            near.write_all(b"hello?").await.unwrap();
            rt.sleep(SECOND).await;
            assert!(near.is_stale() && staleness.is_stale());
            let error = near.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

            let net = rt.net();
            let mut listener = rt.bind(server()).unwrap();
            let mut near = rt.connect(server(), SECOND).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            far.write_all(b"!").await.unwrap();
            rt.sleep(SECOND).await;
            assert!(near.is_stale());
            assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 1);
            assert!(!near.is_stale());
            net.close_connections(server());
            assert!(near.is_stale());
            assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
            assert!(far.write(b"x").await.is_err());
            near.write_all(b"too late").await.unwrap();
            rt.sleep(SECOND).await;
            assert!(near.read(&mut [0; 8]).await.is_err());
            let staleness = near.staleness();
            drop(near);
            assert!(staleness.is_stale());
        });
    });
}

#[test]
fn a_reset_is_seen_at_both_ends() {
    Sim::new(1).run(async |rt| {
        let (mut near, mut far) = pair(&rt).await;
        rt.net().reset_connections(server());
        for stream in [&mut near, &mut far] {
            let error = stream.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(stream.write(b"x").await.is_err());
            assert!(stream.is_stale());
        }
    });
}

#[test]
fn a_silent_link_delivers_all_in_order_once_it_speaks_again() {
    for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt| {
            let (mut near, mut far) = pair(&rt).await;
            near.write_all(b"abc").await.unwrap();
            rt.net().change_link(server(), |link| link.silent = true);
            near.write_all(b"def").await.unwrap();
            let mut six = [0; 6];
            let silence = timeout(&rt, SECOND * 5, far.read_exact(&mut six)).await;
            assert_eq!(silence.unwrap_err(), NetError::Timeout);
            assert_eq!(
                rt.connect(server(), SECOND).await.unwrap_err(),
                NetError::Timeout
            );
            rt.net().change_link(server(), |link| link.silent = false);
            near.write_all(b"ghi").await.unwrap();
            drop(near);
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
            assert!(b"abcdefghi".ends_with(&rest) && rest.len() >= 3);
        });
    });
}

#[test]
fn a_drip_lets_so_many_bytes_through_at_a_time() {
    for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt| {
            let drip = Drip {
                direction: Direction::ToClient,
                bytes: 10,
                every: SECOND,
            };
            rt.net()
                .change_link(server(), |link| link.drip = Some(drip));
            let (mut near, mut far) = pair(&rt).await;
            let begin = rt.elapsed();
            for _ in 0..10 {
                far.write_all(&[1; 10]).await.unwrap();
            }
            drop(far);
            let mut all = Vec::new();
            near.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), 100);
            assert!(rt.elapsed() - begin >= SECOND * 9);
            assert!(rt.elapsed() - begin < SECOND * 100);
        });
    });
}

#[test]
fn listeners_of_one_address_share_its_connections() {
    Sim::new(3).run(async |rt| {
        let (mut one, mut two) = (rt.bind(server()).unwrap(), rt.bind(server()).unwrap());
        let client = rt.on_host("10.9.9.9".parse().unwrap());
        let mut held = Vec::new();
        for _ in 0..40 {
            held.push(client.connect(server(), SECOND).await.unwrap());
        }
        let mut count = [0, 0];
        while let Some((_, peer)) = one.try_accept().unwrap() {
            assert_eq!(peer.unwrap().ip().to_string(), "10.9.9.9");
            count[0] += 1;
        }
        while two.try_accept().unwrap().is_some() {
            count[1] += 1;
        }
        assert_eq!(count[0] + count[1], 40);
        assert!(count[0] > 5 && count[1] > 5, "{count:?}");
        let any = rt.bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = any.local_addr().unwrap().port();
        client
            .connect(SocketAddr::new(HOST, port), SECOND)
            .await
            .unwrap();
    });
}

#[test]
fn closing_a_listener_resets_what_waits() {
    Sim::new(3).run(async |rt| {
        let listener = rt.bind(server()).unwrap();
        let mut near = rt.connect(server(), SECOND).await.unwrap();
        drop(listener);
        let error = near.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(
            rt.connect(server(), SECOND).await.unwrap_err(),
            NetError::Refused
        );
    });
}

#[test]
fn names_are_what_the_test_says() {
    Sim::new(3).run(async |rt| {
        let ip = "192.0.2.7".parse().unwrap();
        assert_eq!(
            rt.resolve("kms.example", 443).await,
            Err(NetError::Unresolved)
        );
        rt.net().set_name("kms.example", &[ip]);
        assert_eq!(
            rt.resolve("kms.example", 443).await,
            Ok(vec![SocketAddr::new(ip, 443)])
        );
        assert_eq!(
            rt.resolve("192.0.2.7", 443).await,
            Ok(vec![SocketAddr::new(ip, 443)])
        );
        rt.net().silence_name("kms.example");
        let silence = timeout(&rt, SECOND, rt.resolve("kms.example", 443)).await;
        assert_eq!(silence, Err(NetError::Timeout));
    });
}

#[test]
fn a_mailbox_and_tokios_neutral_channels_work() {
    for_seeds(SEEDS, |seed| {
        Sim::new(seed).run(async |rt| {
            let (sender, mut receiver) = mailbox::bounded(4);
            let (mut publisher, mut newest) = mailbox::latest();
            let (answer, answered) = tokio::sync::oneshot::channel();
            rt.spawn(async move {
                let mut sum = 0;
                while let Some(n) = receiver.recv().await {
                    sum += n;
                }
                answer.send(sum).unwrap();
            });
            for n in 1..=100 {
                publisher.publish(n);
                while sender.send(n).is_err() {
                    yield_now().await;
                }
            }
            drop(sender);
            assert_eq!(answered.await, Ok(5050));
            assert_eq!(newest.recv().await, Some(100));
        });
    });
}
