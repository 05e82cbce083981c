//! Blobs of new domains on their way to Caisson: one at a time, and it is a client's. Each piece goes on by the door at once, in
//! parts that the door's area takes; nothing of the blob is kept here. What a client has begun ends with its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_abi::control::MAX_BLOB;
use caisson_abi::{CallError, Number};
use caisson_protocol::{Answer, MAX_PIECE, Question};

use crate::host::{Caisson, Call, MAX_DATA, Refusal};

/// Room for a line that says why a domain cannot be made.
const LINE: usize = 1024;

/// Whose blob is under way.
pub struct Uploads {
    caisson: Caisson,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: u64,
    /// The client whose blob it is.
    owner: Option<u64>,
}

impl Uploads {
    /// Nobody's: what a daemon before this one had begun is let go of, with the memory that it takes.
    #[must_use]
    pub fn new(caisson: Caisson) -> Self {
        // Refused where there is none.
        let _ = caisson.call(Call::new(Number::BlobEnd, &[]));
        Self { caisson, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client, which has not begun any.
    #[must_use]
    pub fn client(uploads: &Arc<Self>) -> Upload {
        let mut state = uploads.state();
        state.clients += 1;
        Upload { client: state.clients, uploads: Arc::clone(uploads) }
    }
}

/// A client's blob, if it has begun one. When this is dropped, it makes no more domains.
pub struct Upload {
    uploads: Arc<Uploads>,
    client: u64,
}

impl Upload {
    /// The answer to a question, if it is about making domains.
    #[must_use]
    pub fn answer(&mut self, question: &Question) -> Option<Answer> {
        let done = match question {
            Question::Begin { bytes } => self.begin(*bytes),
            Question::Piece { offset, bytes } => self.piece(*offset, &bytes.0),
            Question::Create { index } => return Some(self.create(*index).unwrap_or_else(Answer::Error)),
            Question::End => self.end(),
            _ => return None,
        };
        Some(done.map_or_else(Answer::Error, |()| Answer::Done(true)))
    }

    /// Held while a call is made, so that it is about this client's blob.
    fn own(&self) -> Result<MutexGuard<'_, State>, String> {
        let state = self.uploads.state();
        if state.owner == Some(self.client) {
            Ok(state)
        } else {
            Err("no blob has been begun here: begin one first".into())
        }
    }

    fn call(&self, call: Call) -> Result<u64, String> {
        self.uploads.caisson.call(call).map(|(answer, _)| answer).map_err(|refusal| words(&refusal))
    }

    fn begin(&mut self, bytes: u64) -> Result<(), String> {
        let mut state = self.uploads.state();
        if state.owner.is_some_and(|owner| owner != self.client) {
            return Err("another program is just making domains: try again when it is done".into());
        }
        // What this client began before is gone, whether there is room for the new one or not.
        state.owner = None;
        self.call(Call::new(Number::BlobBegin, &[bytes]))?;
        state.owner = Some(self.client);
        Ok(())
    }

    fn piece(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let _own = self.own()?;
        if bytes.len() > MAX_PIECE {
            return Err(format!("a piece of {} bytes is too large: send at most {MAX_PIECE}", bytes.len()));
        }
        let mut at = offset;
        for part in bytes.chunks(MAX_DATA) {
            let call = Call::new(Number::BlobWrite, &[at, 0, part.len() as u64]);
            self.call(call.with_data(1, part.to_vec()))?;
            // An offset that is that large is refused.
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn create(&self, index: u32) -> Result<Answer, String> {
        let _own = self.own()?;
        let call = Call::new(Number::DomainCreate, &[index.into(), 0, LINE as u64]);
        let mut calls = [call.with_data(1, vec![0; LINE])];
        self.uploads.caisson.host().calls(&mut calls);
        let [Call { number, data, answer, .. }] = calls;
        match answer {
            Ok(domain) => Ok(Answer::Created(domain as u16)),
            Err(CallError::Refused) => {
                let line = data.split(|&byte| byte == 0).next().unwrap_or_default();
                Err(String::from_utf8_lossy(line).into_owned())
            }
            Err(error) => Err(words(&Refusal { call: number, error })),
        }
    }

    fn end(&self) -> Result<(), String> {
        let mut state = self.own()?;
        state.owner = None;
        self.call(Call::new(Number::BlobEnd, &[])).map(drop)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Refused where there is none.
        let _ = self.end();
    }
}

/// What the errors of these calls mean.
fn words(refusal: &Refusal) -> String {
    match (refusal.call, refusal.error) {
        (Number::BlobBegin, CallError::TooBig) => {
            format!("the blob is too large, {} MiB are the most: make its domains one by one", MAX_BLOB >> 20)
        }
        (Number::BlobBegin, CallError::Invalid) => "the blob is empty".into(),
        (Number::BlobWrite, CallError::Invalid) => "the piece does not lie within the blob".into(),
        (Number::BlobWrite, CallError::Busy) => {
            "a domain has been made of the blob, which stays as it is: begin another".into()
        }
        (Number::DomainCreate, CallError::Invalid) => "the blob has no domain with this number".into(),
        (_, CallError::NotConnected) => "Caisson has no blob of this domain: begin again".into(),
        _ => refusal.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use caisson_protocol::Bytes;

    use super::*;
    use crate::host::fake::Fake;

    fn error(answer: Option<Answer>) -> String {
        match answer {
            Some(Answer::Error(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    const DONE: Option<Answer> = Some(Answer::Done(true));

    #[test]
    fn a_blob_goes_through_in_pieces() {
        let fake = Fake::new();
        let uploads = Arc::new(Uploads::new(Caisson::new(fake.clone())));
        let mut upload = Uploads::client(&uploads);
        let blob: Vec<u8> = (0..300_001_u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(upload.answer(&Question::Begin { bytes: blob.len() as u64 }), DONE);
        for (index, piece) in blob.chunks(MAX_PIECE).enumerate() {
            let (offset, bytes) = ((index * MAX_PIECE) as u64, Bytes(piece.to_vec()));
            assert_eq!(upload.answer(&Question::Piece { offset, bytes }), DONE);
        }
        assert_eq!(fake.blob().unwrap(), blob);
        assert_eq!(upload.answer(&Question::Create { index: 0 }), Some(Answer::Created(1)));
        assert_eq!(upload.answer(&Question::Create { index: 1 }), Some(Answer::Created(2)));
        let no = error(upload.answer(&Question::Create { index: 9 }));
        assert_eq!(no, "domain[9].memory: there is too little left");
        let late = upload.answer(&Question::Piece { offset: 0, bytes: Bytes(vec![1]) });
        assert!(error(late).starts_with("a domain has been made of the blob"));
        assert_eq!(upload.answer(&Question::End), DONE);
        assert_eq!(fake.blob(), None);
        assert!(error(upload.answer(&Question::End)).starts_with("no blob has been begun here"));
        assert_eq!(upload.answer(&Question::Domains), None, "that is another's to answer");
    }

    #[test]
    fn mistakes_are_told() {
        let fake = Fake::new();
        let uploads = Arc::new(Uploads::new(Caisson::new(fake)));
        let mut upload = Uploads::client(&uploads);
        let piece = |offset, count| Question::Piece { offset, bytes: Bytes(vec![1; count]) };
        assert!(error(upload.answer(&piece(0, 1))).starts_with("no blob has been begun here"));
        assert!(error(upload.answer(&Question::Create { index: 0 })).starts_with("no blob"));
        assert_eq!(error(upload.answer(&Question::Begin { bytes: 0 })), "the blob is empty");
        let large = error(upload.answer(&Question::Begin { bytes: MAX_BLOB + 1 }));
        assert!(large.starts_with("the blob is too large, 1024 MiB are the most"), "{large}");
        assert_eq!(upload.answer(&Question::Begin { bytes: 1 << 20 }), DONE);
        assert!(error(upload.answer(&piece(0, MAX_PIECE + 1))).contains("too large"));
        for offset in [(1 << 20) - 1, u64::MAX] {
            let beyond = error(upload.answer(&piece(offset, 2)));
            assert_eq!(beyond, "the piece does not lie within the blob");
        }
        assert_eq!(upload.answer(&piece(u64::MAX, 0)), DONE, "nothing lies anywhere");
    }

    #[test]
    fn one_client_has_a_blob_and_lets_go_of_it_when_it_goes() {
        let fake = Fake::new();
        let uploads = Arc::new(Uploads::new(Caisson::new(fake.clone())));
        let mut one = Uploads::client(&uploads);
        let mut other = Uploads::client(&uploads);
        assert_eq!(one.answer(&Question::Begin { bytes: 10 }), DONE);
        let refused = error(other.answer(&Question::Begin { bytes: 5 }));
        assert!(refused.starts_with("another program is just making domains"), "{refused}");
        assert!(error(other.answer(&Question::End)).starts_with("no blob"), "it is not this one's");
        assert_eq!(fake.blob().unwrap().len(), 10);
        assert_eq!(one.answer(&Question::Begin { bytes: 20 }), DONE, "one's own is begun anew");
        drop(one);
        assert_eq!(fake.blob(), None);
        assert_eq!(other.answer(&Question::Begin { bytes: 5 }), DONE);
        drop(Uploads::client(&uploads));
        assert_eq!(fake.blob().unwrap().len(), 5);
        // The daemon dies, and the next one comes.
        std::mem::forget(other);
        drop(Uploads::new(Caisson::new(fake.clone())));
        assert_eq!(fake.blob(), None);
    }
}
