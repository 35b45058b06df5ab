//! Runs all candidates, round by round, and collects their samples. Runs on the main thread.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::backend::Backend;
use crate::candidate::{Candidate, Kind};
use crate::contention::Contended;
use crate::control::Outcome;
use crate::image::{self, Image};
use crate::plan::Plan;
use crate::sample::{Case, Figures, Sample};
use crate::scratch::Scratch;
use crate::{fio, frontend, limit};

/// Runs a plan.
pub(crate) struct Runner<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    interrupted: &'a AtomicBool,
    progress: ProgressBar,
    samples: Vec<Sample>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(plan: &'a Plan, scratch: &'a Scratch, interrupted: &'a AtomicBool) -> Self {
        // Draws only on a terminal.
        let progress = ProgressBar::with_draw_target(Some(plan.runs()), ProgressDrawTarget::stderr())
            .with_finish(ProgressFinish::AndClear);
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {eta} left: {wide_msg}")
            .expect("the template is valid");
        progress.set_style(style);
        Self {
            plan,
            scratch,
            interrupted,
            progress,
            samples: Vec::new(),
        }
    }

    /// Runs the whole plan.
    ///
    /// # Errors
    /// A candidate failed. The remaining runs are skipped, because the comparison would be incomplete.
    pub(crate) fn run(mut self) -> Result<Vec<Sample>> {
        for case in &self.plan.cases {
            let sizes = (self.plan.image_size, self.plan.fill_size);
            let images = image::prepare(case.storage, sizes, case.load.shape.disks, self.scratch)?;
            self.case(case, &images)?;
        }
        Ok(self.samples)
    }

    /// Runs all rounds of a case. Each round starts with another candidate, so that none always comes first.
    fn case(&mut self, case: &Case, images: &[Image]) -> Result<()> {
        let all = &self.plan.candidates;
        let candidates: Vec<&Candidate> = all.iter().filter(|one| one.supports(&images[0])).collect();
        let left_out = (all.len() - candidates.len()) as u64 * u64::from(self.plan.rounds);
        self.progress.inc(left_out);
        for round in 0..self.plan.rounds {
            for i in 0..candidates.len() {
                let candidate = candidates[(i + round as usize) % candidates.len()];
                self.progress
                    .set_message(format!("{} {}", case.load.shape, candidate.name));
                let outcome = self.outcome(case, candidate, images)?;
                self.samples.push(Sample {
                    backend: candidate.name.clone(),
                    case: *case,
                    round,
                    figures: Figures::from(&outcome),
                });
                self.progress.inc(1);
            }
        }
        Ok(())
    }

    fn outcome(&self, case: &Case, candidate: &Candidate, images: &[Image]) -> Result<Outcome> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let _contended = Contended::start(case.load.contention)?;
        if let Kind::Limit(engine) = candidate.kind {
            return limit::run(engine, images, &case.load, self.interrupted);
        }
        if let Kind::FioRbd = candidate.kind {
            return fio::run(&images[0], &case.load, self.scratch);
        }
        let per_process = if case.load.one_process { images.len() } else { 1 };
        let start = |(number, images): (usize, &[Image])| {
            let first = number * per_process;
            let queues = case.load.shape.queues;
            Backend::start(candidate, images, queues, self.scratch.memory(), first)
        };
        let groups = images.chunks(per_process).enumerate();
        images.iter().try_for_each(Image::renew)?;
        let mut backends = groups.map(start).collect::<Result<Vec<_>>>()?;
        let outcome = frontend::run(&mut backends, &case.load, self.interrupted)?;
        backends.into_iter().try_for_each(Backend::stop)?;
        images.iter().for_each(Image::drain);
        Ok(outcome)
    }
}
