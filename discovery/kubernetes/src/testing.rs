//! An API server that says what a test tells it to, in this process: for what a real one cannot be
//! made to do at will (410, 429, bad objects, connections cut in mid-object).

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// What the server does with one request.
type Handler = dyn Fn(&Request<Bytes>) -> Reply + Send + Sync;

/// An answer to be given.
pub(crate) enum Reply {
    /// This, and the end.
    Whole(u16, Value),
    /// 200, then each line as it comes; the connection is cut when the sender is dropped, without
    /// what the protocol wants at an end if the last item is an error.
    Lines(mpsc::UnboundedReceiver<Result<String, std::io::Error>>),
    /// 200, then these lines, each made when it is wanted, and no end.
    Made(Box<dyn Iterator<Item = String> + Send + Sync>),
    /// Nothing, for ever.
    Silence,
}

impl Reply {
    /// `kind: Status` of this code.
    pub(crate) fn status(code: u16, reason: &str, message: &str) -> Self {
        Self::Whole(code, failure(code, reason, message))
    }
}

/// `kind: Status` of this code.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": message, "reason": reason, "code": code})
}

/// The paths and queries of all requests so far.
pub(crate) type Requests = Arc<Mutex<Vec<String>>>;

/// A client whose requests all go to `handler`.
pub(crate) fn client(handler: impl Fn(&Request<Bytes>) -> Reply + Send + Sync + 'static) -> (Client, Requests) {
    let requests = Requests::default();
    let (seen, handler): (_, Arc<Handler>) = (Arc::clone(&requests), Arc::new(handler));
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().push(request.uri().to_string());
        let handler = Arc::clone(&handler);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let reply = handler(&Request::from_parts(head, body));
            Ok::<_, Infallible>(answer(reply).await)
        }
    });
    (Client::new(service, "default"), requests)
}

async fn answer(reply: Reply) -> Answer {
    let (code, body) = match reply {
        Reply::Whole(code, body) => {
            let body = Full::new(Bytes::from(body.to_string()));
            (code, body.map_err(|never: Infallible| match never {}).boxed())
        }
        Reply::Lines(lines) => {
            let frames = stream::unfold(lines, |mut lines| async move {
                let line = lines.recv().await?;
                Some((line.map(|line| Frame::data(Bytes::from(line))), lines))
            });
            (200, BoxBody::new(StreamBody::new(frames)))
        }
        Reply::Made(lines) => {
            let lines = stream::iter(lines.map(|line| Ok(Frame::data(Bytes::from(line))))).chain(stream::pending());
            (200, BoxBody::new(StreamBody::new(lines)))
        }
        Reply::Silence => return std::future::pending().await,
    };
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

/// A line of a watch, `type` first as API servers write it.
pub(crate) fn event(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}
