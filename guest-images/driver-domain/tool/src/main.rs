//! `caisson`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = caisson_tool::Cli::parse();
    match caisson_tool::run(&cli, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson: {error}");
            error.code()
        }
    }
}
