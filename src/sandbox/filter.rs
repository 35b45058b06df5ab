//! The table of [`calls`](super::calls), compiled to seccomp filters and put over threads.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::calls::{Call, Condition, REFUSED, allowed};
use super::{Error, ThreadKind};
use crate::status::status;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What happens to a thread that makes a call it has no business with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// The whole process is killed with SIGSYS. The kernel's log says which call of which thread it was.
    Kill,
    /// The kernel's log says so, and that is all.
    Log,
}

/// The filters of every kind of thread.
#[derive(Debug)]
pub(super) struct Filters {
    /// By [`ThreadKind`]: what is not allowed is a violation.
    allowing: [BpfProgram; ThreadKind::ALL.len()],
    /// For all of them: what fails with an error, a filter for each. Filters of their own, because a filter knows two outcomes.
    refusing: Vec<BpfProgram>,
}

impl Filters {
    /// Compiles them for this machine and this process.
    pub(super) fn new(violation: Violation) -> Result<Self, Error> {
        let otherwise = match violation {
            Violation::Kill => SeccompAction::KillProcess,
            Violation::Log => SeccompAction::Log,
        };
        let mut allowing = [const { BpfProgram::new() }; ThreadKind::ALL.len()];
        for (program, kind) in allowing.iter_mut().zip(ThreadKind::ALL) {
            let refused = REFUSED.iter().flat_map(|(calls, _)| calls.iter());
            let refused = refused.filter(|call| call.threads.contains(&kind));
            let rules = rules(allowed(kind).chain(refused))?;
            *program = compile(rules, otherwise.clone(), SeccompAction::Allow)?;
        }
        let errors: BTreeSet<u32> = REFUSED.iter().map(|(_, errno)| errno.unsigned_abs()).collect();
        let refusing = errors.into_iter().map(|error| {
            let calls = REFUSED.iter().filter(|(_, errno)| errno.unsigned_abs() == error);
            let rules = rules(calls.flat_map(|(calls, _)| calls.iter()))?;
            compile(rules, SeccompAction::Allow, SeccompAction::Errno(error))
        });
        Ok(Self {
            allowing,
            refusing: refusing.collect::<Result<_, _>>()?,
        })
    }

    /// Puts those of `kind` over the calling thread, for good. A thread that has some already keeps them as well.
    pub(super) fn install(&self, kind: ThreadKind, inherited: bool) -> io::Result<()> {
        if !inherited {
            self.refusing.iter().try_for_each(install)?;
        }
        install(&self.allowing[kind as usize])
    }
}

/// Whether the kernel has what is needed.
pub(super) fn probe() -> io::Result<()> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one number through the pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    status(result)
}

fn rules<'a>(calls: impl Iterator<Item = &'a Call>) -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for call in calls {
        let of_call = rules.entry(call.number()).or_default();
        of_call.extend(conditions(&call.condition).map_err(Error::compile)?);
    }
    Ok(rules)
}

/// One rule for each alternative; none if arguments do not matter.
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

/// As `seccompiler::apply_filter`, but the processor may go on to speculate as before: that nothing is slower with the
/// sandbox than without it, on kernels before 5.16 too.
fn install(program: &BpfProgram) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies the program, whose instructions are laid out as `sock_filter` is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    status(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_allowed_whatever_its_arguments_has_no_rules_about_them() {
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
    fn what_is_refused_is_not_allowed_too() {
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
