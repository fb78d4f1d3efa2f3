//! Work that would hold a core for too long, such as an RSA signature: done on a thread of its own.

use std::sync::OnceLock;

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::{NetError, cores::spawn_helper};

/// Pieces of work that may wait. Each takes about a millisecond, so the last of them waits about a second.
const QUEUE_MAX: usize = 1024;

type Work = Box<dyn FnOnce() + Send>;

/// Runs `work` on the process's one worker thread; see [`crate::Rt::offload`].
pub(crate) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetError> {
    static WORKER: OnceLock<Sender<Work>> = OnceLock::new();
    let worker = WORKER.get_or_init(start);
    let (give, result) = oneshot::channel();
    let work: Work = Box::new(move || drop(give.send(work())));
    worker.try_send(work).map_err(|_| NetError::Exhausted)?;
    // Dropped unsent if the work panicked, or if there is no thread.
    result.await.map_err(|_| NetError::Exhausted)
}

fn start() -> Sender<Work> {
    let (sender, works) = crossbeam_channel::bounded::<Work>(QUEUE_MAX);
    let started = spawn_helper("offload".to_owned(), move || {
        for work in works {
            crate::guard::counted(work);
        }
    });
    if let Err(error) = started {
        // The queue's other end is gone, so all work is refused.
        tracing::error!("no thread for work off the cores: {error}");
    }
    sender
}

#[cfg(test)]
mod tests {
    use crate::{NetError, Rt as _, run_here};

    #[test]
    fn work_runs_on_a_thread_of_its_own_and_a_panic_in_it_ends_there() {
        run_here(async |rt| {
            let here = std::thread::current().id();
            let there = rt.offload(|| std::thread::current().id()).await.unwrap();
            assert_ne!(here, there);
            let panics = crate::task_panics();
            assert_eq!(
                rt.offload(|| panic!("in a test")).await,
                Err::<(), _>(NetError::Exhausted)
            );
            assert_eq!(rt.offload(|| 7).await, Ok(7), "the thread goes on");
            // Counted by now: the thread does one thing after the other.
            assert!(crate::task_panics() > panics);
        })
        .unwrap();
    }
}
