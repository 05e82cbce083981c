//! The scheduler in a discrete-event simulator, and its operations one by one.

mod bvt;
mod caps;
mod cost;
mod operations;
mod sedf;
mod simulator;
mod smp;
