//! Door 4: `ztunnel._core`. Translates types and errors, releases the GIL, and nothing else; the contracts are in
//! `ztunnel/_core.pyi`.

mod judge;
mod ticks;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use zeroize::Zeroizing;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Kind, Offer};
use ztunnel_net::config::Config;
use ztunnel_net::dataplane::{Dataplane, Who};
use ztunnel_net::log::{TARGETS, Target};
use ztunnel_net::netns::EnrolError;

create_exception!(ztunnel._core, NamespaceGone, PyException);
create_exception!(ztunnel._core, AddressTaken, PyException);

const LONGEST_DRAIN_S: f64 = 86_400.0;
const LONGEST_PROFILE_S: f64 = 600.0;

/// Of each bundle its names and versions; (type URL, name, why) of each refused resource.
type Kept = (
    Vec<(Vec<String>, Vec<String>)>,
    Vec<(&'static str, String, String)>,
);

/// `None` after `close()`.
#[pyclass(frozen, module = "ztunnel._core")]
struct Core(RwLock<Option<Dataplane>>);

impl Core {
    /// Without the GIL, so that a call that waits for another never waits for the interpreter as well.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Dataplane) -> PyResult<T> + Send,
    ) -> PyResult<T> {
        py.detach(
            || match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
                Some(dataplane) => call(dataplane),
                None => Err(PyRuntimeError::new_err("the core is closed")),
            },
        )
    }

    fn end(&self) {
        let taken = self
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(dataplane) = taken {
            dataplane.close();
        }
    }
}

#[pymethods]
impl Core {
    #[new]
    fn new(py: Python<'_>, config: PyBackedBytes) -> PyResult<Self> {
        py.detach(|| {
            let config = Config::parse(&config).map_err(PyValueError::new_err)?;
            let dataplane = Dataplane::start(config)?;
            Ok(Self(RwLock::new(Some(dataplane))))
        })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, |core| Ok(core.shared.mailbox.fd()))
    }

    fn take(&self, py: Python<'_>) -> PyResult<Vec<(String, String, String)>> {
        self.with(py, |core| Ok(core.shared.mailbox.take()))
    }

    #[pyo3(signature = (type_url, upserts, removed, more=false))]
    fn apply(
        &self,
        py: Python<'_>,
        type_url: &str,
        upserts: Vec<(PyBackedStr, PyBackedBytes)>,
        removed: Vec<String>,
        more: bool,
    ) -> PyResult<Vec<(String, String)>> {
        let kind = kind_of(type_url)?;
        self.with(py, |core| Ok(core.apply(kind, &upserts, &removed, more)))
    }

    fn restore(&self, py: Python<'_>, bundles: Vec<(String, PyBackedBytes)>) -> PyResult<Kept> {
        let kinds = bundles.iter().map(|(url, _)| kind_of(url));
        let kinds = kinds.collect::<PyResult<Vec<_>>>()?;
        let packed: Vec<_> = kinds
            .into_iter()
            .zip(bundles.iter().map(|(_, packed)| &packed[..]))
            .collect();
        let restored = self.with(py, |core| {
            core.restore(&packed).map_err(PyValueError::new_err)
        })?;
        let names = restored.names.into_iter().map(|of| of.into_iter().unzip());
        let refused = restored.refused.into_iter();
        Ok((
            names.collect(),
            refused
                .map(|(kind, name, why)| (url_of(kind), name, why))
                .collect(),
        ))
    }

    #[pyo3(signature = (uid, name, namespace, service_account, netns_fd, search=Vec::new(), addresses=Vec::new(), inherited=None))]
    #[allow(clippy::too_many_arguments)] // what Python calls by keyword
    fn enrol(
        &self,
        py: Python<'_>,
        uid: String,
        name: String,
        namespace: String,
        service_account: String,
        netns_fd: RawFd,
        search: Vec<String>,
        addresses: Vec<String>,
        inherited: Option<Vec<RawFd>>,
    ) -> PyResult<()> {
        let addresses = addresses
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|_| PyValueError::new_err(format!("{text:?} is no address")))
            })
            .collect::<PyResult<Vec<_>>>()?;
        if netns_fd < 0 {
            return Err(NamespaceGone::new_err("the descriptor is negative"));
        }
        // SAFETY: the caller keeps the descriptors open during the call; a stale one fails as EBADF inside.
        let fd = unsafe { BorrowedFd::borrow_raw(netns_fd) };
        let inherited = inherited.map(copies).transpose()?;
        let who = Who {
            uid,
            name,
            namespace,
            service_account,
            search,
            addresses,
        };
        self.with(py, |core| {
            core.enrol(who, fd, inherited).map_err(enrol_error)
        })
    }

    fn listeners(&self, py: Python<'_>, uid: &str) -> PyResult<Vec<RawFd>> {
        let found = self.with(py, |core| core.listeners(uid).map_err(os_error))?;
        Ok(found.into_iter().map(IntoRawFd::into_raw_fd).collect())
    }

    fn use_direct(&self, py: Python<'_>, maps: Vec<RawFd>) -> PyResult<()> {
        let maps = (!maps.is_empty()).then(|| copies(maps)).transpose()?;
        let maps = maps.map(|fds| {
            <[OwnedFd; 3]>::try_from(fds)
                .map_err(|_| PyValueError::new_err("three maps are needed"))
        });
        let maps = maps.transpose()?;
        self.with(py, |core| core.use_direct(maps).map_err(os_error))
    }

    fn withdraw(&self, py: Python<'_>, uid: &str) -> PyResult<()> {
        self.with(py, |core| {
            core.withdraw(uid);
            Ok(())
        })
    }

    fn pods(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |core| Ok(core.pods()))
    }

    fn missing_policies(&self, py: Python<'_>) -> PyResult<Vec<(String, String, String)>> {
        self.with(py, |core| Ok(core.missing_policies()))
    }

    fn new_key(&self, py: Python<'_>, identity: &str) -> PyResult<Vec<u8>> {
        let request = |core: &Dataplane| {
            core.shared
                .identities
                .new_key(&parse(identity)?)
                .map_err(PyValueError::new_err)
        };
        self.with(py, |core| request(core).map(String::into_bytes))
    }

    fn install_chain(
        &self,
        py: Python<'_>,
        identity: &str,
        chain: Vec<String>,
    ) -> PyResult<(f64, f64)> {
        self.with(py, |core| {
            core.install_chain(&parse(identity)?, &chain)
                .map_err(PyValueError::new_err)
        })
    }

    fn install_svid(
        &self,
        py: Python<'_>,
        identity: &str,
        key: PyBackedBytes,
        chain: Vec<String>,
    ) -> PyResult<(f64, f64)> {
        let key = Zeroizing::new(key.to_vec());
        self.with(py, |core| {
            core.shared
                .identities
                .install_svid(&parse(identity)?, key, &chain)
                .map_err(PyValueError::new_err)
        })
    }

    fn set_trust(&self, py: Python<'_>, document: PyBackedBytes) -> PyResult<()> {
        self.with(py, |core| {
            core.set_trust(&document).map_err(PyValueError::new_err)
        })
    }

    fn in_use(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |core| Ok(core.is_in_use()))
    }

    fn forget_absent(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |core| {
            core.shared.identities.forget_absent();
            Ok(())
        })
    }

    fn keys(&self, py: Python<'_>) -> PyResult<(Vec<String>, u64)> {
        self.with(py, |core| {
            let (held, dropped) = core.shared.identities.keys();
            Ok((held.iter().map(ToString::to_string).collect(), dropped))
        })
    }

    fn certificate_failed(&self, py: Python<'_>, identity: &str, why: &str) -> PyResult<()> {
        self.with(py, |core| {
            core.shared.identities.failed(&parse(identity)?, why);
            Ok(())
        })
    }

    fn forget_identity(&self, py: Python<'_>, identity: &str) -> PyResult<()> {
        self.with(py, |core| {
            core.shared.identities.forget(&parse(identity)?);
            Ok(())
        })
    }

    fn drain(&self, py: Python<'_>, deadline_s: f64) -> PyResult<()> {
        if !(0.0..=LONGEST_DRAIN_S).contains(&deadline_s) {
            return Err(PyValueError::new_err(format!(
                "deadline_s is {deadline_s}, not between 0 and {LONGEST_DRAIN_S}"
            )));
        }
        self.with(py, |core| {
            core.drain(Duration::from_secs_f64(deadline_s));
            Ok(())
        })
    }

    fn metrics(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        self.with(py, |core| Ok(core.metrics()))
    }

    fn dump(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        self.with(py, |core| Ok(core.dump()))
    }

    fn explain(&self, py: Python<'_>, source: &str, destination: &str) -> PyResult<Vec<u8>> {
        self.with(py, |core| {
            core.explain(source, destination)
                .map_err(PyValueError::new_err)
        })
    }

    #[pyo3(signature = (level, target = ""))]
    fn set_log_level(&self, py: Python<'_>, level: &str, target: &str) -> PyResult<()> {
        let level = level.parse().map_err(PyValueError::new_err::<String>)?;
        let named = |(_, name): &&(Target, &str)| target.is_empty() || *name == target;
        let meant: Vec<_> = TARGETS.iter().filter(named).collect();
        if meant.is_empty() {
            return Err(PyValueError::new_err(format!("{target:?} logs nothing")));
        }
        self.with(py, |core| {
            for (target, _) in meant {
                core.shared.log.set_level(*target, level);
            }
            Ok(())
        })
    }

    fn take_spans(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |core| Ok(core.shared.spans.take()))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.end());
    }
}

/// A forgotten core leaves no thread behind. The threads never need the GIL, so joining them under it is safe.
impl Drop for Core {
    fn drop(&mut self) {
        self.end();
    }
}

fn copies(descriptors: Vec<RawFd>) -> PyResult<Vec<OwnedFd>> {
    let copy = |fd: RawFd| {
        if fd < 0 {
            return Err(PyValueError::new_err("a descriptor is negative"));
        }
        // SAFETY: not negative, and open as long as the caller keeps it so; a stale one fails as EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        borrowed.try_clone_to_owned().map_err(os_error)
    };
    descriptors.into_iter().map(copy).collect()
}

const ADDRESS_URL: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION_URL: &str = "type.googleapis.com/istio.security.Authorization";

fn url_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Address => ADDRESS_URL,
        Kind::Authorization => AUTHORIZATION_URL,
    }
}

fn kind_of(type_url: &str) -> PyResult<Kind> {
    match type_url {
        ADDRESS_URL => Ok(Kind::Address),
        AUTHORIZATION_URL => Ok(Kind::Authorization),
        other => Err(PyValueError::new_err(format!(
            "{other:?} is no type of resource that the core takes"
        ))),
    }
}

fn parse(identity: &str) -> PyResult<SpiffeId> {
    SpiffeId::parse(identity)
        .map_err(|why| PyValueError::new_err(format!("{identity:?} is no identity: {why}")))
}

fn enrol_error(e: EnrolError) -> PyErr {
    match e {
        EnrolError::NamespaceGone(_) => NamespaceGone::new_err(e.to_string()),
        EnrolError::AddressTaken { .. } => AddressTaken::new_err(e.to_string()),
        EnrolError::NoSuchAddress { .. } => os_error(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            e.to_string(),
        )),
        EnrolError::Other(e) => os_error(e),
    }
}

/// With errno where there is one, as Python's own OSError.
fn os_error(e: io::Error) -> PyErr {
    match e.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, e.to_string())),
        None => PyOSError::new_err(e.to_string()),
    }
}

#[pyfunction]
fn profile(py: Python<'_>, seconds: f64, hertz: i32) -> PyResult<Vec<ticks::Stack>> {
    if !(seconds > 0.0 && seconds <= LONGEST_PROFILE_S && (1..=1000).contains(&hertz)) {
        return Err(PyValueError::new_err("seconds or hertz are out of range"));
    }
    py.detach(|| ticks::stacks(seconds, hertz))
        .map_err(PyValueError::new_err)
}

/// (name, version, data), as Python has it.
type Upsert<'py> = (&'py str, &'py str, Bound<'py, PyBytes>);

/// Type URL, nonce, system_version_info, upserts, (name, type URL) of those of another type, removed.
type Read<'py> = (
    &'py str,
    &'py str,
    &'py str,
    Vec<Upsert<'py>>,
    Vec<(&'py str, &'py str)>,
    Vec<&'py str>,
);

#[pyfunction]
fn read_response<'py>(py: Python<'py>, response: &'py [u8]) -> PyResult<Read<'py>> {
    let offer = Offer::read(response)
        .ok_or_else(|| PyValueError::new_err("is no DeltaDiscoveryResponse"))?;
    let (mut upserts, mut odd) = (Vec::with_capacity(offer.resources.len()), Vec::new());
    for each in &offer.resources {
        if each.type_url == offer.type_url {
            upserts.push((each.name, each.version, PyBytes::new(py, each.data)));
        } else {
            odd.push((each.name, each.type_url));
        }
    }
    Ok((
        offer.type_url,
        offer.nonce,
        offer.version_info,
        upserts,
        odd,
        offer.removed,
    ))
}

/// Door 4. See `_core.pyi`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Core>()?;
    module.add_function(wrap_pyfunction!(judge::judge, module)?)?;
    module.add_function(wrap_pyfunction!(profile, module)?)?;
    module.add_function(wrap_pyfunction!(read_response, module)?)?;
    module.add("NamespaceGone", module.py().get_type::<NamespaceGone>())?;
    module.add("AddressTaken", module.py().get_type::<AddressTaken>())
}
