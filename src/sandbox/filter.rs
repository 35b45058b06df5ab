//! The table of [`calls`](super::calls), compiled to seccomp filters and installed on threads.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::calls::{Call, Condition, REFUSED, allowed, applies};
use super::error::Error;
use super::fatal::{FATAL, FATAL_HERE};
use super::thread_kind::ThreadKind;
use crate::sys::seccomp::{Logged, install};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The kernel's reaction to a call that the thread may not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Log the call in the kernel's log, and raise SIGSYS, whose handler reports the call and ends the process. For fatal
    /// calls, kill the whole process.
    End,
    /// Only log the call in the kernel's log.
    Log,
}

/// The filters of all kinds of threads.
#[derive(Debug)]
pub(super) struct Filters {
    /// Indexed by [`ThreadKind`]: a call that is not allowed is a violation.
    allowing: [BpfProgram; ThreadKind::ALL.len()],
    /// For all kinds: one filter for each error with which calls fail, and one for fatal calls. They are separate because
    /// a filter has only two outcomes.
    common: Vec<BpfProgram>,
}

impl Filters {
    /// Compiles the filters for this machine and this process.
    pub(super) fn new(violation: Violation) -> Result<Self, Error> {
        let (otherwise, fatal) = match violation {
            Violation::End => (SeccompAction::Trap, SeccompAction::KillProcess),
            Violation::Log => (SeccompAction::Log, SeccompAction::Log),
        };
        let mut allowing = [const { BpfProgram::new() }; ThreadKind::ALL.len()];
        for (program, kind) in allowing.iter_mut().zip(ThreadKind::ALL) {
            let refused = REFUSED.iter().flat_map(|(calls, _)| calls.iter());
            let refused = refused.filter(|call| applies(call, kind));
            let rules = rules(allowed(kind).chain(refused))?;
            *program = compile(rules, otherwise.clone(), SeccompAction::Allow)?;
        }
        let errors: BTreeSet<u32> = REFUSED.iter().map(|(_, errno)| errno.unsigned_abs()).collect();
        let refusing = errors.into_iter().map(|error| {
            let calls = REFUSED.iter().filter(|(_, errno)| errno.unsigned_abs() == error);
            let rules = rules(calls.flat_map(|(calls, _)| calls.iter()))?;
            compile(rules, SeccompAction::Allow, SeccompAction::Errno(error))
        });
        let mut common: Vec<BpfProgram> = refusing.collect::<Result<_, _>>()?;
        let calls = rules(FATAL.iter().chain(FATAL_HERE))?;
        common.push(compile(calls, SeccompAction::Allow, fatal)?);
        Ok(Self { allowing, common })
    }

    /// Installs the filters of `kind` on the calling thread, for good. Filters that the thread already has stay active.
    pub(super) fn install(&self, kind: ThreadKind, inherited: bool) -> io::Result<()> {
        if !inherited {
            self.common
                .iter()
                .try_for_each(|program| install(program, Logged::No))?;
        }
        install(&self.allowing[kind as usize], Logged::Yes)
    }
}

fn rules<'a>(calls: impl Iterator<Item = &'a Call>) -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for call in calls {
        let of_call = rules.entry(call.number()).or_default();
        of_call.extend(conditions(&call.condition).map_err(Error::compile)?);
    }
    Ok(rules)
}

/// Returns one rule for each alternative, or none if arguments do not matter.
fn conditions(condition: &Condition) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let rule = |argument, len, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, len, operator, value)?])
    };
    let equal = |argument, value: u32| rule(argument, Dword, SeccompCmpOp::Eq, value.into());
    match *condition {
        Condition::None => Ok(Vec::new()),
        Condition::Among(argument, values) => {
            values.iter().map(|(_, value)| equal(argument, *value)).collect()
        }
        Condition::Masked {
            argument,
            mask,
            value,
            ..
        } => {
            let masked = SeccompCmpOp::MaskedEq(mask.into());
            Ok(vec![rule(argument, Dword, masked, value.into())?])
        }
        Condition::Null(argument, _) => Ok(vec![rule(argument, Qword, SeccompCmpOp::Eq, 0)?]),
        Condition::OwnProcess(argument) => Ok(vec![equal(argument, std::process::id())?]),
    }
}

fn compile(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<BpfProgram, Error> {
    let machine = std::env::consts::ARCH.try_into().map_err(Error::compile)?;
    let filter = SeccompFilter::new(rules, otherwise, matching, machine).map_err(Error::compile)?;
    filter.try_into().map_err(Error::compile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unconditional_calls_have_no_argument_rules() {
        for kind in ThreadKind::ALL {
            for call in allowed(kind) {
                let others = allowed(kind)
                    .filter(|other| other.number() == call.number())
                    .count();
                let free = matches!(call.condition, Condition::None);
                assert!(!free || others == 1, "{} of {kind}", call.name());
            }
        }
    }

    #[test]
    fn no_refused_call_is_also_allowed() {
        for (calls, _) in REFUSED {
            for (call, kind) in calls
                .iter()
                .flat_map(|call| call.threads.iter().map(move |kind| (call, *kind)))
            {
                let both = allowed(kind).any(|other| other.number() == call.number());
                assert!(!both, "{} of {kind}", call.name());
            }
        }
    }
}
