//! A tunnel inside a stream of another one: how pods of another network are reached through its gateway, which passes
//! bytes on that it cannot read. Owns the nesting; not who is reached.
//!
//! The inner tunnel runs on a connection of its own within this process, so that it is a tunnel like any other.

use crate::pool::{Dialer, Key, OpenError, Opened, Tunnels};
use crate::relay::{Bytes2, relay_tunnel};
use crate::tls;
use crate::tunnel::{RequestError, Tunnel, drive};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;
use ztunnel_core::h2::{Config, Role};
use ztunnel_core::ids::SpiffeId;

/// Strangers on our loopback address whose connections are turned away before we give up.
const STRANGERS: usize = 16;

type Fields<'a> = &'a [(&'a str, &'a str)];

impl Tunnels {
    /// A CONNECT stream to `authority` at the end of which is one of `want`, through the gateway of `key`. The inner tunnel
    /// carries this one stream.
    pub async fn open_beyond(
        self: &Rc<Self>,
        key: Key,
        dialer: Dialer<'_>,
        authority: &str,
        (outer, inner): (Fields<'_>, Fields<'_>),
        want: &[SpiffeId],
    ) -> Result<Opened, OpenError> {
        let from = key.from.clone();
        let gateway = self.open(key, dialer, authority, outer, None).await?;
        let (near, mut far) = pair().await.map_err(OpenError::Connect)?;
        spawn_local(async move {
            // Whoever uses the inner stream learns of its end from the stream.
            let _ = relay_tunnel(near, gateway.stream, &Rc::<Bytes2>::default()).await;
        });
        let ready = self.identities.ready(&from).await;
        let credentials = ready.map_err(OpenError::Identity)?;
        let shaking = tls::connect(&mut far, credentials.configs.client_for(want));
        let shaken = timeout(self.limits.handshake, shaking).await;
        let secured = shaken
            .map_err(|_| OpenError::Timeout("TLS handshake behind the gateway"))?
            .map_err(|why| OpenError::Tls(format!("behind the gateway: {why}")))?;
        let (tunnel, early) = Tunnel::new(far, secured, Config::client(), &credentials)
            .map_err(OpenError::Connect)?;
        self.remember(&tunnel);
        let (driven, idle) = (tunnel.clone(), self.limits.pool_idle);
        spawn_local(async move {
            let _ = drive(driven, early, Role::Client, idle, &|_| {}).await;
        });
        let asking = timeout(self.limits.answer, tunnel.request(authority, inner, None));
        let answer = asking
            .await
            .map_err(|_| OpenError::Timeout("answer to CONNECT"));
        tunnel.leave(); // it ends with its one stream, also when there is none
        let (stream, headers, told) = answer?.map_err(|why| refused(&tunnel, why))?;
        Ok(Opened {
            stream,
            peer: tunnel.peer.clone(),
            local: gateway.local,
            headers,
            told,
        })
    }
}

fn refused(tunnel: &Tunnel, why: RequestError) -> OpenError {
    match why {
        RequestError::Status(status) => OpenError::Status(status),
        RequestError::Full => OpenError::H2("the far end takes no stream".to_owned()),
        RequestError::Unanswered(why) | RequestError::Lost(why) if !tunnel.is_introduced() => {
            OpenError::Tls(why)
        }
        RequestError::Unanswered(why) | RequestError::Lost(why) => OpenError::H2(why),
        RequestError::App(why) => OpenError::App(why),
        RequestError::Reset(code) => {
            OpenError::H2(format!("the far end reset the stream (HTTP/2 code {code})"))
        }
    }
}

/// Two ends of one connection within this process. Somebody else on this host may knock meanwhile; he is not let in.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    for _ in 0..STRANGERS {
        let (far, peer) = listener.accept().await?;
        if peer == own {
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
    Err(io::Error::other(
        "somebody else keeps connecting to our loopback address",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn what_goes_in_at_one_end_comes_out_at_the_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let (mut near, mut far) = pair().await.expect("loopback");
            near.write_all(b"in").await.expect("connected");
            let mut buffer = [0; 2];
            far.read_exact(&mut buffer).await.expect("connected");
            assert_eq!(&buffer, b"in");
        });
    }
}
