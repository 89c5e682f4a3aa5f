//! Decodes several row groups at once, on several threads.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::{Error, Result};

/// Calls `decode` for each item, on at most `threads` threads, and returns the results in the order
/// of the items. After an error, no further item is decoded.
pub(super) fn each<I: Send, T: Send>(
    threads: usize,
    items: impl IntoIterator<Item = I>,
    decode: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let items: Vec<I> = items.into_iter().collect();
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.into_iter().map(decode).collect();
    }
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let left = Mutex::new(items.into_iter().enumerate());
    let work = || {
        loop {
            let next = locked(&left).next();
            let Some((at, item)) = next else { break };
            let made = decode(item);
            if made.is_err() {
                locked(&left).by_ref().for_each(drop);
            }
            locked(&done).push((at, made));
        }
    };
    thread::scope(|scope| -> Result<()> {
        for _ in 0..threads {
            thread::Builder::new().name("row groups".into()).spawn_scoped(scope, work).map_err(
                |error| {
                    Error::Thread(format!("cannot start a thread to decode row groups: {error}"))
                },
            )?;
        }
        Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, made)| made).collect()
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier, Condvar,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Checks that several items are decoded at once, and that the results are in the order of the
    /// items, even if a later item is finished first.
    #[test]
    fn results_are_in_order() -> Result<()> {
        let (both, done, later) = (Barrier::new(2), Mutex::new(false), Condvar::new());
        let made = each(2, [0, 1], |item| {
            both.wait();
            let mut done = done.lock().expect("no thread panics");
            if item == 0 {
                drop(later.wait_while(done, |done| !*done).expect("no thread panics"));
            } else {
                *done = true;
                later.notify_one();
            }
            Ok(10 * item)
        })?;
        assert_eq!(made, [0, 10]);
        let items: Vec<i32> = (0..100).collect();
        assert_eq!(each(3, items, |item| Ok(item + 1))?, (1..=100).collect::<Vec<_>>());
        assert_eq!(each(3, [], |item: i32| Ok(item))?, [0; 0]);
        Ok(())
    }

    /// Checks that the error of the earlier item is returned if two items fail, even if the later
    /// item failed first. After an item has failed, no further item may be begun.
    #[test]
    fn the_first_error_is_returned() {
        let (both, begun) = (Barrier::new(2), AtomicUsize::new(0));
        let outcome: Result<Vec<()>> = each(2, 0..6, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if item < 2 {
                both.wait();
            }
            Err(Error::config(format!("item {item}")))
        });
        assert_eq!(outcome.expect_err("all fail").to_string(), "item 0");
        assert!(begun.into_inner() <= 3);
    }
}
