//! The program behind `cargo xtask`.

use std::process::{ExitCode, exit};

use clap::Parser as _;
use xtask::{
    bench,
    cli::{Cli, Command},
    config, console, doctor,
    error::{Error, Result},
    fuzz,
    paths::Workspace,
    run, test, trace,
};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        console::restore_terminal();
        let message = info.payload_as_str().unwrap_or("no message");
        if message.starts_with("failed printing to stdout") {
            // `print!` panics when whoever read its output is gone (`| head`), which is no bug and needs no words.
            exit(1);
        }
        let place =
            info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        eprintln!("error: a bug in xtask{place}: {message}");
        exit(101);
    }));
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if let Some(output) = error.tool_output() {
                eprintln!("{output}");
            }
            if !matches!(error, Error::Interrupted) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    let workspace = Workspace::find();
    let success = |()| 0;
    match cli.command {
        Command::Run(args) => {
            let outcome = run::command(&workspace, &args)?;
            if !outcome.is_success() {
                eprintln!("error: {outcome}");
            }
            Ok(outcome.exit_code())
        }
        Command::Test(args) => test::command(&workspace, &args),
        Command::Image(args) => run::image(&workspace, &args).map(success),
        Command::Config(command) => config::command(&workspace, &command).map(success),
        Command::Bench(args) => bench::command(&workspace, &args).map(success),
        Command::Trace(args) => trace::command(&workspace, args),
        Command::Fuzz(args) => fuzz::command(&workspace, &args),
        Command::Doctor => doctor::command(&workspace),
    }
}
