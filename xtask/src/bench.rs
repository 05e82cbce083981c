//! `cargo xtask bench`: what exits cost, counted in instructions on a machine where one instruction is one nanosecond
//! and one TSC tick ([`Machine::exact`](crate::qemu::Machine::exact)), so that every figure repeats.

use crate::{
    cargo,
    cli::BenchArgs,
    error::{Error, Result},
    paths::Workspace,
};

/// Runs `cargo xtask bench`.
///
/// # Errors
/// When the probe guests that measure are not in the source tree.
pub fn command(workspace: &Workspace, _args: &BenchArgs) -> Result<()> {
    if !cargo::packages(workspace)?.iter().any(|package| package.name == cargo::PROBES) {
        return Err(Error::Failed(format!(
            "nothing to measure with: the package {} has the probe guests",
            cargo::PROBES
        )));
    }
    Err(Error::Failed("the probe guests have no measurement yet".to_owned()))
}
