//! Questions about domains, and what is to be done to them: each is a call of Caisson's or two, which need the privilege
//! `control`.

use std::thread;
use std::time::{Duration, Instant};

use caisson_abi::control::{ConsoleHeader, DomainRecord, MachineRecord, VcpuRecord};
use caisson_abi::{CallError, Number};
use caisson_protocol::{Action, Answer, MAX_TYPED, Output, Question};
use zerocopy::FromBytes;

use crate::host::{Caisson, Call, MAX_DATA, Refusal, records};

/// How long a vCPU may take off its CPU before its domain goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often that is tried.
const STEP: Duration = Duration::from_millis(1);

impl Caisson {
    /// The answer to a question that is not about devices.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Answer {
        self.try_answer(question).unwrap_or_else(|refusal| Answer::Error(refusal.to_string()))
    }

    fn try_answer(&self, question: &Question) -> Result<Answer, Refusal> {
        Ok(match question {
            Question::Devices => Answer::Error("devices are the daemon's own".into()),
            Question::Begin { .. } | Question::Piece { .. } | Question::Create { .. } | Question::End => {
                Answer::Error("blobs are a connection's own".into())
            }
            Question::Machine => {
                let (_, data) = self.written(Number::MachineInfo, &[], size_of::<MachineRecord>())?;
                let record = MachineRecord::read_from_prefix(&data)
                    .map_err(|_| Refusal { call: Number::MachineInfo, error: CallError::Fault })?;
                Answer::Machine(record.0.into())
            }
            Question::Domains => {
                let (count, data) = self.written(Number::DomainList, &[], MAX_DATA)?;
                Answer::Domains(records::<DomainRecord>(&data, count).into_iter().map(Into::into).collect())
            }
            Question::Vcpus { domain } => {
                let (count, data) = self.written(Number::VcpuList, &[(*domain).into()], MAX_DATA)?;
                Answer::Vcpus(records::<VcpuRecord>(&data, count).into_iter().map(Into::into).collect())
            }
            Question::Act { action, domain } => {
                self.act(*action, *domain)?;
                Answer::Done(true)
            }
            Question::Read { domain, position } => {
                let arguments = [u64::from(*domain), *position];
                let (count, data) = self.written(Number::ConsoleRead, &arguments, MAX_DATA)?;
                let (header, rest) = ConsoleHeader::read_from_prefix(&data)
                    .map_err(|_| Refusal { call: Number::ConsoleRead, error: CallError::Fault })?;
                let count = usize::try_from(count).unwrap_or(usize::MAX).min(rest.len());
                Answer::Output(Output::new(header, rest.get(..count).unwrap_or_default().to_vec()))
            }
            Question::Write { bytes, .. } if bytes.0.len() > MAX_TYPED => {
                Answer::Error(format!("more than {MAX_TYPED} bytes at once cannot be typed"))
            }
            Question::Write { domain, bytes } => {
                let call = Call::new(Number::ConsoleWrite, &[(*domain).into(), 0, bytes.0.len() as u64]);
                Answer::Written(self.call(call.with_data(1, bytes.0.clone()))?.0)
            }
        })
    }

    /// A call that writes up to `bytes` bytes; its address and their number come behind `arguments`.
    fn written(&self, number: Number, arguments: &[u64], bytes: usize) -> Result<(u64, Vec<u8>), Refusal> {
        let all: Vec<_> = arguments.iter().copied().chain([0, bytes as u64]).collect();
        self.call(Call::new(number, &all).with_data(arguments.len(), vec![0; bytes]))
    }

    fn act(&self, action: Action, domain: u16) -> Result<(), Refusal> {
        let number = match action {
            Action::Start => Number::DomainStart,
            Action::Shutdown => Number::DomainShutdown,
            Action::Reset => Number::DomainReset,
            Action::Destroy => Number::DomainDestroy,
            Action::Pause => Number::DomainPause,
            Action::Resume => Number::DomainResume,
            Action::Forget => Number::DomainForget,
        };
        let start = Instant::now();
        loop {
            match self.call(Call::new(number, &[domain.into()])) {
                // A vCPU is on its way off its CPU.
                Err(Refusal { call: Number::DomainResume, error: CallError::Busy })
                    if start.elapsed() < PATIENCE =>
                {
                    thread::sleep(STEP);
                }
                other => return other.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use caisson_abi::control::{ended, flag, state};
    use caisson_protocol::{Bytes, Ended, State};

    use super::*;
    use crate::host::fake::Fake;

    #[test]
    fn questions_become_calls() {
        let fake = Fake::new();
        fake.add_domain(DomainRecord {
            id: 1,
            flags: flag::CALLER,
            state: state::RUNNING,
            ..DomainRecord::default()
        });
        fake.add_domain(DomainRecord { id: 2, state: state::BLOCKED, ..DomainRecord::default() });
        let caisson = Caisson::new(fake);
        let states = || match caisson.answer(&Question::Domains) {
            Answer::Domains(domains) => domains.iter().map(|domain| domain.state).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let act = |action, domain| caisson.answer(&Question::Act { action, domain });
        assert_eq!(states(), [State::Running, State::Blocked]);
        assert_eq!(act(Action::Pause, 2), Answer::Done(true));
        assert_eq!(states(), [State::Running, State::Paused]);
        // Refused a few times first: it is tried again.
        assert_eq!(act(Action::Resume, 2), Answer::Done(true));
        assert_eq!(states(), [State::Running, State::Running]);
        assert_eq!(act(Action::Destroy, 2), Answer::Done(true));
        let Answer::Domains(domains) = caisson.answer(&Question::Domains) else { panic!("no domains") };
        assert_eq!((domains[1].state, domains[1].ended), (State::Gone, Ended::Destroyed));
        let Answer::Error(error) = act(Action::Destroy, 1) else { panic!("its own end") };
        assert_eq!(error, "domain_destroy: an argument is out of range");
        let Answer::Error(error) = act(Action::Pause, 9) else { panic!("nobody paused") };
        assert_eq!(error, "domain_pause: no domain with this number is alive");
        assert_eq!(ended::DESTROYED, 5);
        assert_eq!(act(Action::Forget, 2), Answer::Done(true));
        assert_eq!(states(), [State::Running]);
        let Answer::Error(error) = act(Action::Forget, 2) else { panic!("nobody was forgotten") };
        assert_eq!(error, "domain_forget: no domain with this number is alive");
    }

    #[test]
    fn consoles_are_read_and_typed_on() {
        let fake = Fake::new();
        fake.add_domain(DomainRecord { id: 1, ..DomainRecord::default() });
        fake.print(1, b"hello\xff");
        let caisson = Caisson::new(fake.clone());
        let expected = Output { first: 2, end: 6, bytes: Bytes(b"llo\xff".to_vec()) };
        assert_eq!(caisson.answer(&Question::Read { domain: 1, position: 2 }), Answer::Output(expected));
        let write = |count| Question::Write { domain: 1, bytes: Bytes(vec![b'x'; count]) };
        assert_eq!(caisson.answer(&write(3)), Answer::Written(3));
        assert_eq!(fake.typed(1), b"xxx");
        assert!(matches!(caisson.answer(&write(MAX_TYPED + 1)), Answer::Error(_)));
        let Answer::Machine(machine) = caisson.answer(&Question::Machine) else { panic!("no machine") };
        assert_eq!(machine.domains, 1);
        assert_eq!(caisson.answer(&Question::Vcpus { domain: 1 }), Answer::Vcpus(Vec::new()));
    }
}
