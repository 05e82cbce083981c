//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Controls the domains of a machine that runs Caisson, from its driver domain.
#[derive(Clone, Debug, Parser)]
#[command(name = "caisson", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the daemon listens.
    #[arg(long, global = true, value_name = "PATH", default_value = caisson_protocol::SOCKET)]
    pub socket: PathBuf,
    /// Seconds to wait for what was asked for, where that is waited for.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60)]
    pub patience: u64,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do. A domain is given by its name or its number.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List all domains.
    #[command(alias = "ls")]
    List,
    /// Tell all of one domain, with its vCPUs.
    #[command(alias = "dominfo")]
    Info {
        /// Which.
        domain: String,
    },
    /// Make domains from a TOML text or from a blob, in their order, and start them.
    Create {
        /// The text, whose files are looked for from its own folder, or the blob.
        file: PathBuf,
        /// The only one of its domains that is made.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        /// Wait until they run.
        #[arg(long)]
        wait: bool,
    },
    /// Forget a domain that is gone: its name and its number are free, and it cannot be started again.
    #[command(alias = "undefine")]
    Forget {
        /// Which.
        domain: String,
    },
    /// Start a domain that is gone, from its record in the configuration.
    Start {
        /// Which.
        domain: String,
        /// Wait until it runs.
        #[arg(long)]
        wait: bool,
    },
    /// Press a domain's power button: its operating system shuts down.
    Shutdown {
        /// Which.
        domain: String,
        /// Wait until it is gone.
        #[arg(long)]
        wait: bool,
    },
    /// Press a domain's reset button.
    #[command(alias = "reboot")]
    Reset {
        /// Which.
        domain: String,
    },
    /// End a domain at once, and wait until it is gone.
    Destroy {
        /// Which.
        domain: String,
    },
    /// Have a domain stand still, and its clock with it.
    #[command(alias = "suspend")]
    Pause {
        /// Which.
        domain: String,
    },
    /// Have a paused domain go on.
    #[command(alias = "unpause")]
    Resume {
        /// Which.
        domain: String,
    },
    /// Attach this terminal to a domain's console; Ctrl-] leaves it.
    Console {
        /// Which.
        domain: String,
        /// Print what has been kept of its output, and end.
        #[arg(long, conflicts_with = "port")]
        dump: bool,
        /// Its console port of this name, which this domain serves, instead.
        #[arg(long, value_name = "NAME")]
        port: Option<String>,
    },
    /// Show where the time goes.
    Top {
        /// How often, and then end.
        #[arg(short = 'n', long, value_name = "COUNT")]
        times: Option<u64>,
        /// Seconds from one to the next.
        #[arg(short = 'd', long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Follow what becomes of the domains.
    Events {
        /// How many events, and then end.
        #[arg(short = 'n', long, value_name = "COUNT")]
        times: Option<u64>,
    },
    /// List the devices that this domain serves.
    Devices,
}
