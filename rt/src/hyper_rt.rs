//! hyper's own small traits over [`Rt`]: timers (without one hyper has no header timeout at all) and an executor.
//!
//! hyper makes a timer for every request head that it waits for, and drops it when the head has come. Arming one of the
//! core's timers each time cost 8 % of a request that needs no upstream call. So a dropped timer is kept armed, for the
//! next: it may fire too early for that one, which then arms another for the rest.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::Rt;
use crate::thread_bound::ThreadBound;

/// Gives hyper the timers of a core: `http1::Builder::timer(HyperTimer::new(rt.clone()))`.
///
/// Make one for each connection: a timer that is kept armed is of use to the task that it wakes.
pub struct HyperTimer<R: Rt>(ThreadBound<Rc<Timers<R>>>);

struct Timers<R: Rt> {
    rt: R,
    spare: Cell<Option<Alarm<R>>>,
}

impl<R: Rt> HyperTimer<R> {
    /// A timer for one connection, which stays on `rt`'s core.
    pub fn new(rt: R) -> Self {
        Self(ThreadBound::new(Rc::new(Timers {
            rt,
            spare: Cell::new(None),
        })))
    }
}

impl<R: Rt> Clone for HyperTimer<R> {
    fn clone(&self) -> Self {
        Self(ThreadBound::new(Rc::clone(self.0.get())))
    }
}

impl<R: Rt> fmt::Debug for HyperTimer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperTimer").finish_non_exhaustive()
    }
}

impl<R: Rt> hyper::rt::Timer for HyperTimer<R> {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(self.0.get().rt.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let timers = Rc::clone(self.0.get());
        Box::pin(HyperSleep::<R>(ThreadBound::new(Sleep {
            deadline,
            alarm: None,
            timers,
        })))
    }

    fn now(&self) -> Instant {
        self.0.get().rt.now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<HyperSleep<R>>() {
            Some(mut ours) => ours.0.get_mut().deadline = new_deadline,
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}

/// One of the core's timers, armed.
struct Alarm<R: Rt> {
    #[expect(dead_code, reason = "held: dropping it disarms")]
    sleep: R::Sleep,
    fires_at: Instant,
    /// Whom it wakes.
    waker: Waker,
}

/// What [`HyperTimer`] gives.
pub struct HyperSleep<R: Rt>(ThreadBound<Sleep<R>>);

struct Sleep<R: Rt> {
    deadline: Instant,
    /// Armed at the first poll. Fires at the deadline or before.
    alarm: Option<Alarm<R>>,
    timers: Rc<Timers<R>>,
}

impl<R: Rt> Sleep<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.timers.rt.now();
        if now >= self.deadline {
            return Poll::Ready(());
        }
        let alarm = self.alarm.take().or_else(|| self.timers.spare.take());
        let alarm = alarm.filter(|alarm| {
            alarm.fires_at > now
                && alarm.fires_at <= self.deadline
                && alarm.waker.will_wake(cx.waker())
        });
        if alarm.is_some() {
            self.alarm = alarm;
            return Poll::Pending;
        }
        let mut sleep = self.timers.rt.sleep(self.deadline - now);
        if Pin::new(&mut sleep).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.alarm = Some(Alarm {
            sleep,
            fires_at: self.deadline,
            waker: cx.waker().clone(),
        });
        Poll::Pending
    }
}

impl<R: Rt> Drop for Sleep<R> {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            self.timers.spare.set(Some(alarm));
        }
    }
}

impl<R: Rt> fmt::Debug for HyperSleep<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperSleep").finish_non_exhaustive()
    }
}

impl<R: Rt> Future for HyperSleep<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_mut().poll(cx)
    }
}

// The fields are not pinned structurally: `poll` pins the core's timer anew, which is `Unpin`.
impl<R: Rt> Unpin for HyperSleep<R> {}

impl<R: Rt> hyper::rt::Sleep for HyperSleep<R> {}

/// Gives hyper the tasks of a core.
#[derive(Clone, Debug)]
pub struct HyperExecutor<R>(R);

impl<R: Rt> HyperExecutor<R> {
    /// An executor that spawns on `rt`'s core.
    pub fn new(rt: R) -> Self {
        Self(rt)
    }
}

impl<R: Rt, F: Future + 'static> hyper::rt::Executor<F> for HyperExecutor<R> {
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::rt::Timer;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::sim::{self, Sim, SimRt};
    use crate::{Listener, Stream};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sleep_ends_at_its_deadline_also_when_it_was_moved() {
        Sim::new(1).run(async |rt| {
            let timer = HyperTimer::new(rt.clone());
            let begin = rt.elapsed();
            timer.sleep(SECOND).await;
            assert!((SECOND..SECOND * 2).contains(&(rt.elapsed() - begin)));

            for seconds in [1, 5] {
                let begin = rt.elapsed();
                let mut sleep = timer.sleep(SECOND * 3);
                // Armed for three seconds before it is moved.
                assert!(
                    poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx)))
                        .await
                        .is_pending()
                );
                timer.reset(&mut sleep, rt.now() + SECOND * seconds);
                sleep.await;
                let waited = rt.elapsed() - begin;
                assert!(
                    (SECOND * seconds..SECOND * (seconds + 1)).contains(&waited),
                    "{waited:?}"
                );
            }
        });
    }

    #[test]
    fn a_dropped_sleep_leaves_its_timer_to_the_next() {
        Sim::new(1).run(async |rt| {
            let timer = HyperTimer::new(rt.clone());
            let begin = rt.elapsed();
            for _ in 0..100 {
                let mut sleep = timer.clone().sleep(SECOND);
                assert!(
                    poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx)))
                        .await
                        .is_pending()
                );
                drop(sleep);
                rt.sleep(SECOND / 200).await;
            }
            assert!(timer.0.get().spare.take().is_some_and(|alarm| {
                // Still the first one.
                alarm.fires_at < rt.now() + SECOND - SECOND / 4
            }));
            timer.sleep(SECOND).await;
            assert!(rt.elapsed() - begin >= SECOND + SECOND / 2);
        });
    }

    /// Answers each request with its own body, one connection at a time.
    fn spawn_server(rt: &SimRt, header_timeout: Duration) -> std::net::SocketAddr {
        let mut listener = rt.bind("10.0.0.2:80".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let rt = rt.clone();
        rt.clone().spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let timer = HyperTimer::new(rt.clone());
                rt.spawn(async move {
                    let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(Response::new(Full::new(body)))
                    });
                    // Ends with an error when the header timeout has passed.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(timer)
                        .header_read_timeout(header_timeout)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        address
    }

    #[test]
    fn requests_pass_over_one_connection_in_every_order() {
        sim::for_seeds(100, |seed| {
            Sim::new(seed).run(async |rt| {
                let address = spawn_server(&rt, SECOND);
                let stream = rt.connect(address, SECOND).await.unwrap();
                let staleness = stream.staleness();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .unwrap();
                rt.spawn(async move { connection.await.unwrap() });
                for n in 0..20 {
                    sender.ready().await.unwrap();
                    assert!(!staleness.is_stale());
                    let body = Bytes::from(vec![b'x'; n * 1000]);
                    let request = Request::post("/echo")
                        .body(Full::new(body.clone()))
                        .unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
                    rt.sleep(SECOND / 10).await;
                }
                // The header timeout also ends idle connections; the pool sees it without asking hyper.
                rt.sleep(SECOND * 2).await;
                assert!(staleness.is_stale());
            });
        });
    }

    #[test]
    fn a_client_that_never_speaks_is_dropped_after_the_header_timeout() {
        Sim::new(1).run(async |rt| {
            let address = spawn_server(&rt, SECOND * 5);
            let mut stream = rt.connect(address, SECOND).await.unwrap();
            let begin = rt.elapsed();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            let waited = rt.elapsed() - begin;
            assert!((SECOND * 4..SECOND * 6).contains(&waited), "{waited:?}");
        });
    }
}
