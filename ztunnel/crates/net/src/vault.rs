//! Keys and certificates across a restart of the tunnel: one file per identity in a directory that is memory (tmpfs), so
//! that the power going off takes them with it. Owns the files; when they come and go is `identity`'s.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use zeroize::Zeroizing;
use ztunnel_core::ids::SpiffeId;

use crate::key::Key;

/// linux/magic.h
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
/// A key, a leaf, six intermediates and some roots.
const LONGEST: u64 = 256 << 10;

/// What was kept: the key and the chain that `install_chain` was given.
pub(crate) struct Kept {
    pub(crate) key: Key,
    pub(crate) chain: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Vault(PathBuf);

impl Vault {
    /// Makes the directory if need be. Refuses one that is not in memory or that others can enter.
    pub(crate) fn open(path: &str) -> Result<Self, String> {
        let directory = PathBuf::from(path);
        let of = |why: String| format!("key_dir {path}: {why}");
        let made = DirBuilder::new().mode(0o700).create(&directory);
        if let Err(why) = made
            && why.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(of(why.to_string()));
        }
        let found = fs::symlink_metadata(&directory).map_err(|why| of(why.to_string()))?;
        // SAFETY: no argument, cannot fail.
        let me = unsafe { libc::geteuid() };
        if !found.is_dir() || found.mode() & 0o077 != 0 || found.uid() != me {
            return Err(of("is not a directory of ours with mode 0700".to_owned()));
        }
        if !in_memory(&directory).map_err(|why| of(why.to_string()))? {
            return Err(of("is not on tmpfs: keys do not go to a disk".to_owned()));
        }
        Ok(Self(directory))
    }

    fn path(&self, identity: &SpiffeId) -> PathBuf {
        let name = digest(&SHA256, identity.as_str().as_bytes());
        let hex: String = name
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.0.join(hex)
    }

    /// Whole or not at all: written aside, then renamed.
    pub(crate) fn keep(
        &self,
        identity: &SpiffeId,
        key: &Key,
        chain: &[String],
    ) -> Result<(), String> {
        let key = key.to_pem()?;
        let chain = serde_json::to_string(chain).map_err(|why| why.to_string())?;
        let text = Zeroizing::new(format!("{identity}\n{chain}\n{}", &*key));
        let path = self.path(identity);
        let aside = path.with_extension("new");
        wipe(&aside);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| {
                wipe(&path);
                fs::rename(&aside, &path)
            });
        written.map_err(|why| format!("{}: {why}", path.display()))
    }

    /// None: nothing was kept. Err: something that cannot be used, and is gone now.
    pub(crate) fn find(&self, identity: &SpiffeId) -> Result<Option<Kept>, String> {
        let path = self.path(identity);
        let text = match read(&path) {
            Ok(text) => text,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(format!("{}: {why}", path.display())),
        };
        let kept = unpack(identity, &text);
        if kept.is_err() {
            wipe(&path);
        }
        kept.map(Some)
            .map_err(|why| format!("{}: {why}", path.display()))
    }

    pub(crate) fn remove(&self, identity: &SpiffeId) {
        wipe(&self.path(identity));
    }

    /// What was kept for others than these: of pods that left while nobody was here.
    pub(crate) fn remove_others(&self, present: &HashSet<SpiffeId>) {
        let keep: HashSet<PathBuf> = present.iter().map(|id| self.path(id)).collect();
        let Ok(entries) = fs::read_dir(&self.0) else {
            return; // the directory is gone, and everything in it
        };
        for entry in entries.flatten() {
            if !keep.contains(&entry.path()) {
                wipe(&entry.path());
            }
        }
    }
}

fn in_memory(directory: &Path) -> io::Result<bool> {
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statfs is a valid value; the kernel fills it.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a buffer of the right type, both alive during the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok([TMPFS, RAMFS].contains(&about.f_type))
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    let mut text = Zeroizing::new(String::with_capacity(file.metadata()?.len() as usize + 1));
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn unpack(identity: &SpiffeId, text: &str) -> Result<Kept, String> {
    let mut parts = text.splitn(3, '\n');
    let (Some(name), Some(chain), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("is cut short".to_owned());
    };
    if name != identity.as_str() {
        return Err("is somebody else's".to_owned());
    }
    Ok(Kept {
        key: Key::from_pem(key.as_bytes())?,
        chain: serde_json::from_str(chain).map_err(|why| why.to_string())?,
    })
}

/// Zeros over it, then away with it. On tmpfs the pages are the file, so nothing of it stays.
fn wipe(path: &Path) {
    if let Ok(mut file) = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
    {
        let _ = overwrite(&mut file); // it is taken away in any case
    }
    let _ = fs::remove_file(path); // Err: it was not there
}

fn overwrite(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len().min(LONGEST) as usize;
    file.write_all(&vec![0; length])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In memory on every Linux; gone with the test.
    struct Shm(PathBuf);

    impl Shm {
        fn new(name: &str) -> Self {
            let own = format!("/dev/shm/nodemesh-vault-{name}-{}", std::process::id());
            Self(PathBuf::from(own))
        }

        fn vault(&self) -> Vault {
            Vault::open(&self.0.to_string_lossy()).expect("a vault")
        }
    }

    impl Drop for Shm {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("it was made");
        }
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", account).expect("id")
    }

    #[test]
    fn what_is_kept_is_found_with_the_same_key_and_no_other_name_finds_it() {
        let (shm, key) = (Shm::new("find"), Key::generate().expect("key"));
        let chain = vec!["leaf".to_owned(), "roots".to_owned()];
        shm.vault().keep(&id("web"), &key, &chain).expect("kept");
        let kept = shm.vault().find(&id("web")).expect("read").expect("found");
        assert_eq!(kept.chain, chain);
        assert_eq!(kept.key.public_der(), key.public_der());
        assert!(shm.vault().find(&id("db")).expect("read").is_none());
        let mode = fs::metadata(shm.vault().path(&id("web")))
            .expect("file")
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_nobody_here_needs_goes_and_what_is_damaged_goes() {
        let (shm, key) = (Shm::new("others"), Key::generate().expect("key"));
        let vault = shm.vault();
        for account in ["web", "db"] {
            vault.keep(&id(account), &key, &[]).expect("kept");
        }
        vault.remove_others(&HashSet::from([id("web")]));
        assert!(vault.find(&id("web")).expect("read").is_some());
        assert!(vault.find(&id("db")).expect("read").is_none());
        fs::copy(vault.path(&id("web")), vault.path(&id("thief"))).expect("copied");
        assert!(vault.find(&id("thief")).is_err());
        assert!(vault.find(&id("thief")).expect("gone").is_none());
    }

    #[test]
    fn a_directory_that_others_can_enter_or_that_is_on_a_disk_is_refused() {
        let shm = Shm::new("refused");
        DirBuilder::new().mode(0o750).create(&shm.0).expect("made");
        let why = Vault::open(&shm.0.to_string_lossy()).expect_err("refused");
        assert!(why.contains("mode 0700"), "{why}");
        let why = Vault::open("/proc/self").expect_err("refused");
        assert!(why.contains("/proc/self"), "{why}");
    }
}
