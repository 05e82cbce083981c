//! The physical serial line: COM1, through the `uart_16550` crate.

use core::sync::atomic::{AtomicBool, Ordering};

use caisson_locks::{Mutex, Rank};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use crate::cpu::{PATIENCE, wait_until};

/// COM1's first port.
const COM1: u16 = 0x3f8;
/// COM1's ISA interrupt.
pub const COM1_IRQ: u8 = 4;

/// Whether the UART interrupts when it can take more.
static SENDING: AtomicBool = AtomicBool::new(false);
/// `None` until [`init`], where there is no UART, and once it has stopped sending.
static PORT: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(Rank::Serial, None);

/// Sets COM1 to 115200 baud, 8N1, if it is there.
pub fn init() {
    // SAFETY: COM1 is Caisson's alone; guests see a virtual one.
    let Ok(mut uart) = (unsafe { Uart16550::new_port(COM1) }) else { return };
    // What the firmware has left in the transmitter goes out first; a line on which nothing moves is none.
    let idle = |uart: &mut Uart16550<PioBackend>| uart.lsr().contains(LSR::TRANSMITTER_EMPTY);
    if !uart.check_present() || !wait_until(PATIENCE, || idle(&mut uart)) {
        return;
    }
    let config = Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT };
    if uart.init(config).is_ok() {
        *PORT.lock() = Some(uart);
    }
}

/// Writes all of `bytes`, waiting for the line where it must. A line that does not take a byte for a second or more is
/// given up.
pub fn write(mut bytes: &[u8]) {
    let mut port = PORT.lock();
    let Some(uart) = port.as_mut() else { return };
    while !bytes.is_empty() {
        let mut sent = 0;
        let moves = wait_until(PATIENCE, || {
            sent = uart.send_bytes(bytes);
            sent != 0
        });
        if !moves {
            *port = None;
            return;
        }
        bytes = bytes.get(sent..).unwrap_or_default();
    }
}

/// Writes as many of `bytes` as the line takes at once (an empty transmitter takes a FIFO of them), and answers how many;
/// where there is no line it takes everything.
#[must_use]
pub fn try_write(bytes: &[u8]) -> usize {
    PORT.lock().as_mut().map_or(bytes.len(), |uart| uart.send_bytes(bytes))
}

/// Waits until all that was written has left the UART, before it loses its power. The other end may be slow to take it,
/// as an emulator's is on a busy host; but a line on which nothing moves must not keep a run from ending.
pub fn flush() {
    // Who ends after a failure may have failed while writing.
    if let Some(uart) = PORT.try_lock().as_deref_mut().and_then(Option::as_mut) {
        let _ = wait_until(PATIENCE, || uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
    }
}

/// Makes the UART interrupt when it can take more output, or no longer.
pub fn interrupt_when_sent(on: bool) {
    if let Some(uart) = PORT.lock().as_mut() {
        if SENDING.swap(on, Ordering::Relaxed) == on {
            return;
        }
        if on {
            uart.enable_interrupts(IER::THR_EMPTY);
        } else {
            uart.disable_interrupts(IER::THR_EMPTY);
        }
    }
}

/// A byte that came in, if any.
#[must_use]
pub fn read() -> Option<u8> {
    PORT.lock().as_mut()?.try_receive_byte().ok()
}

/// Makes the UART interrupt when bytes come in.
pub fn enable_receive_interrupt() {
    if let Some(uart) = PORT.lock().as_mut() {
        uart.enable_interrupts(IER::DATA_READY);
    }
}

/// Makes the line usable whatever held it: for the crash record only.
///
/// # Safety
/// No other code may use the line afterwards.
pub unsafe fn force_unlock() {
    // SAFETY: promised by the caller; the UART has no state in memory that could be half-written.
    unsafe { PORT.unranked().force_unlock() };
}
