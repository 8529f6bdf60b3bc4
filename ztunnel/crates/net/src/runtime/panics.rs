//! Who hears of a panic on a worker's thread: the mailbox, not stderr.

use crate::mailbox::Mailbox;
use std::cell::RefCell;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, Once};

thread_local! {
    static MAILBOX: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
}

/// What panics on this thread is told to `mailbox`.
pub(super) fn tell(mailbox: &Arc<Mailbox>) {
    MAILBOX.set(Some(mailbox.clone()));
}

/// tokio ends a task that panics and goes on; the hook sees to it that somebody hears of it. Other threads' panics go the
/// way they went before.
pub(super) fn report_to_mailboxes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let told = MAILBOX.with_borrow(|mailbox| {
                mailbox
                    .as_ref()
                    .map(|m| m.fault(&place(info), &message(info)))
            });
            if told.is_none() {
                before(info);
            }
        }));
    });
}

fn place(info: &PanicHookInfo<'_>) -> String {
    info.location().map_or_else(
        || "unknown".into(),
        |at| format!("{}:{}", at.file(), at.line()),
    )
}

fn message(info: &PanicHookInfo<'_>) -> String {
    info.payload_as_str().unwrap_or("panic").to_owned()
}
