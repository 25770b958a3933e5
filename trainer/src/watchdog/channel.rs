//! The connections of the side channel: each rank keeps one to each hub, over which both send their
//! frames; what arrives becomes an event of the watchdog's loop.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::beat::{Beat, FRAME_BYTES, Kind};

/// How long a newcomer may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a rank tries again to reach a hub that is not there yet, and how long it waits between.
const CONNECT_ATTEMPTS: u32 = 20;
const CONNECT_PAUSE: Duration = Duration::from_millis(250);

/// How long a connection stays open for the peer's last words after ours.
const LAST_WORD_TIMEOUT: Duration = Duration::from_millis(300);

/// What a connection brings.
#[derive(Debug)]
pub(super) enum Event {
    /// A rank has said something.
    Heard(Beat),
    /// The connection to a rank is gone.
    Lost { rank: usize, unanswered: bool },
}

/// What connections of this rank share.
#[derive(Clone)]
pub(super) struct Channel {
    pub(super) rank: usize,
    pub(super) degree: usize,
    pub(super) token: String,
    /// How long what was sent may stay unanswered by the other host's system.
    pub(super) unanswered_after: Duration,
    /// What this rank says, whenever it says something new.
    pub(super) frames: watch::Receiver<Box<[u8; FRAME_BYTES]>>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Channel {
    /// Accepts ranks for good. Who does not know the token is turned away.
    pub(super) async fn listen(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let channel = self.clone();
            tokio::spawn(async move {
                if let Some((rank, stream)) = channel.welcome(stream).await {
                    channel.talk(rank, stream).await;
                }
            });
        }
    }

    async fn welcome(&self, mut stream: TcpStream) -> Option<(usize, TcpStream)> {
        let mut frame = [0; FRAME_BYTES];
        timeout(HELLO_TIMEOUT, stream.read_exact(&mut frame)).await.ok()?.ok()?;
        let hello = Beat::decode(&frame)?;
        let knows = hello.kind == Kind::Hello && hello.note == self.token;
        (knows && hello.rank < self.degree && hello.rank != self.rank)
            .then_some((hello.rank, stream))
    }

    /// Goes to hub number `hub`, and again whenever the connection is lost, which a network may do
    /// to a run that is well.
    pub(super) async fn visit(self, hub: usize, address: SocketAddr) {
        let mut failures = 0;
        while failures < CONNECT_ATTEMPTS && self.frames.has_changed().is_ok() {
            failures += 1;
            if let Ok(mut stream) = TcpStream::connect(address).await {
                let hello = Beat::of(Kind::Hello, self.rank, &self.token).encode();
                if stream.write_all(&hello[..]).await.is_ok() {
                    self.clone().talk(hub, stream).await;
                    failures = 0;
                }
            }
            sleep(CONNECT_PAUSE).await;
        }
    }

    /// Sends every frame of this rank and hands on those of `peer` until the connection ends.
    async fn talk(mut self, peer: usize, stream: TcpStream) {
        // Where these cannot be set, trouble is told later.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(self.unanswered_after));
        let (mut reader, mut writer) = stream.into_split();
        let events = self.events.clone();
        let mut frames = self.frames.clone();
        let write = async move {
            loop {
                let frame = frames.borrow_and_update().clone();
                writer.write_all(&frame[..]).await?;
                if frames.changed().await.is_err() {
                    // This rank has come to its end and has said so.
                    return writer.shutdown().await;
                }
            }
        };
        let read = async {
            let mut frame = [0; FRAME_BYTES];
            loop {
                reader.read_exact(&mut frame).await?;
                // A frame that is not ours is passed over: there is nothing it could ask for.
                if let Some(beat) = Beat::decode(&frame).filter(|beat| beat.rank == peer)
                    && events.send(Event::Heard(beat)).await.is_err()
                {
                    return io::Result::Ok(());
                }
            }
        };
        tokio::pin!(read);
        let ended = tokio::select! { ended = write => ended, ended = &mut read => ended };
        if ended.is_ok() {
            // What the peer still sends is taken in: closing over it would cut off our last word.
            let _ = timeout(LAST_WORD_TIMEOUT, read).await;
        }
        self.lost(peer, ended.err()).await;
    }

    async fn lost(&mut self, rank: usize, error: Option<io::Error>) {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let kind = error.map(|error| error.kind());
        let unanswered = matches!(kind, Some(TimedOut | HostUnreachable | NetworkUnreachable));
        // The loop that reads events may have ended before its connections.
        let _ = self.events.send(Event::Lost { rank, unanswered }).await;
    }
}
