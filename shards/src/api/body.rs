//! The bodies of answers: text that may be seen, or keys in memory that is wiped and used again.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use tsp_wire::api::SecretBuf;

use crate::buffers::Buffers;

/// A body that is there as a whole.
#[derive(Debug, Default)]
pub(crate) struct Body(Option<Data>);

/// Bytes on their way to the client.
#[derive(Debug)]
pub(crate) enum Data {
    Text(Bytes),
    Keys {
        answer: SecretBuf,
        sent: usize,
        home: Buffers,
    },
}

impl Body {
    /// A body with keys. Its memory goes to `home`, wiped, when it has been sent.
    pub(super) fn keys(answer: SecretBuf, home: &Buffers) -> Self {
        Self(Some(Data::Keys {
            answer,
            sent: 0,
            home: home.clone(),
        }))
    }
}

impl From<Bytes> for Body {
    fn from(text: Bytes) -> Self {
        Self((!text.is_empty()).then_some(Data::Text(text)))
    }
}

impl hyper::body::Body for Body {
    type Data = Data;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self.0.as_ref().map_or(0, Buf::remaining);
        SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Keys { answer, sent, .. } => answer.as_ref().get(*sent..).unwrap_or_default(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Text(text) => text.advance(count),
            Self::Keys { sent, .. } => *sent += count,
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Self::Keys { answer, home, .. } = self {
            home.give(answer.take_wiped());
        }
    }
}
