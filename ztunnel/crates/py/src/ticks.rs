//! Where this process's processor time goes, for somebody who asks: the stack under each tick of a timer that runs on
//! processor time. Nothing of it runs at other times.

use pprof::ProfilerGuardBuilder;
use std::ffi::{CStr, c_char};
use std::thread::sleep;
use std::time::Duration;

/// Libraries in which a tick is passed over, because unwinding from there could wait for a lock that is held. Since glibc
/// 2.35 (`_dl_find_object`) it takes none; before, that is all of libc, and with it every system call.
const SPARED: &[&str] = &["libgcc", "vdso"];
const SPARED_BEFORE: &[&str] = &["libgcc", "vdso", "libc", "pthread", "ld-linux"];
const WITHOUT_LOCKS: (u32, u32) = (2, 35);

unsafe extern "C" {
    safe fn gnu_get_libc_version() -> *const c_char;
}

fn spared() -> &'static [&'static str] {
    // SAFETY: a constant of the library, which is never unloaded.
    let version = unsafe { CStr::from_ptr(gnu_get_libc_version()) };
    let mut parts = version
        .to_str()
        .unwrap_or_default()
        .split('.')
        .map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= WITHOUT_LOCKS => SPARED,
        _ => SPARED_BEFORE,
    }
}

/// The thread's name, then (function, file, line) from the outermost to the innermost, and how often it was seen.
pub(crate) type Stack = (String, Vec<(String, String, u32)>, u64);

/// Looks for this long, so many times in each second of processor time. Err: another profile is being taken.
pub(crate) fn stacks(seconds: f64, hertz: i32) -> Result<Vec<Stack>, String> {
    let guard = ProfilerGuardBuilder::default()
        .frequency(hertz)
        .blocklist(spared())
        .build()
        .map_err(|e| e.to_string())?;
    sleep(Duration::from_secs_f64(seconds));
    let report = guard.report().build().map_err(|e| e.to_string())?;
    let seen = report.data.iter().map(|(at, times)| {
        let symbols = at.frames.iter().rev().flatten();
        let place = |symbol: &pprof::Symbol| {
            let file = symbol.filename.as_ref().map(|f| f.display().to_string());
            (symbol.name(), file.unwrap_or_default(), symbol.lineno())
        };
        let times = u64::try_from(*times).unwrap_or_default();
        (at.thread_name.clone(), symbols.map(place).collect(), times)
    });
    Ok(seen.collect())
}
