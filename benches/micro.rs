//! Time per batch of each hot path: `cargo bench --bench micro`.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use criterion::{Criterion, criterion_group, criterion_main};

mod scenarios;

fn micro(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    for (name, mut step) in scenarios::all() {
        group.bench_function(name, |bencher| bencher.iter(&mut step));
    }
}

criterion_group!(benches, micro);
criterion_main!(benches);
