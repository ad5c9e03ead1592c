//! The scenario on a Cortex-M7, QEMU's mps2-an500. Flash image and output go through semihosting; `arg` names the image.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::panic::PanicInfo;
use core::ptr;
use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, nr, syscall};
use firmware_demo::flash::Nor;
use firmware_demo::json::Line;
use firmware_demo::scenario::Platform;

#[cfg(feature = "residual")]
use firmware_demo::residual::{FLASH_LEN, Memory, boot};
#[cfg(not(feature = "residual"))]
use firmware_demo::{engine::Memory, flash::FLASH_LEN, scenario::boot};

/// The flash image on the host, in the folder QEMU was started in.
const IMAGE: &[u8] = b"flash.bin\0";
/// What an interrupt runs; none is enabled.
#[unsafe(link_section = ".vector_table.interrupts")]
#[unsafe(no_mangle)]
static __INTERRUPTS: [unsafe extern "C" fn(); 32] = [DefaultHandler; 32];
/// What unused stack holds.
const PAINT: u32 = 0x5afe_57ac;

unsafe extern "C" {
    /// The end of statics, and the lowest word of the stack; set by the linker.
    static mut __sheap: u32;
    /// Above the first word of the stack.
    static _stack_start: u32;
    /// Of cortex-m-rt.
    fn DefaultHandler();
}

/// A file or the console of the host.
struct Stream(usize);

impl Stream {
    /// Opens a file; `name` ends with a zero. Modes are those of `nr::open`.
    fn open(name: &[u8], mode: usize) -> Option<Self> {
        // SAFETY: the host reads `name` only, its length without the zero.
        let handle = unsafe { syscall!(OPEN, name.as_ptr(), mode, name.len().saturating_sub(1)) };
        (handle != usize::MAX).then_some(Self(handle))
    }

    /// Whether all bytes were written.
    fn write(&self, bytes: &[u8]) -> bool {
        // SAFETY: the host reads `bytes` only.
        unsafe { syscall!(WRITE, self.0, bytes.as_ptr(), bytes.len()) == 0 }
    }

    /// Whether all of `bytes` was filled.
    fn read(&self, bytes: &mut [u8]) -> bool {
        // SAFETY: the host writes into `bytes` only, which is borrowed for it; any byte is valid there.
        unsafe { syscall!(READ, self.0, bytes.as_mut_ptr(), bytes.len()) == 0 }
    }

    fn close(self) -> bool {
        // SAFETY: the handle is open and not used again.
        unsafe { syscall!(CLOSE, self.0) == 0 }
    }
}

/// Counts instructions by the first timer of the board (CMSDK APB timer, 25 MHz): with `-icount shift=0` an instruction takes a
/// nanosecond, so that a tick is 40 instructions.
struct Timer;

impl Timer {
    const CONTROL: *mut u32 = 0x4000_0000 as *mut u32;
    const VALUE: *mut u32 = 0x4000_0004 as *mut u32;
    const RELOAD: *mut u32 = 0x4000_0008 as *mut u32;

    fn start() {
        // SAFETY: registers of the board's timer, which nothing else uses; no interrupt is enabled.
        unsafe {
            ptr::write_volatile(Self::RELOAD, u32::MAX);
            ptr::write_volatile(Self::VALUE, u32::MAX);
            ptr::write_volatile(Self::CONTROL, 1);
        }
    }

    fn ticks() -> u32 {
        // SAFETY: as above; the timer counts down.
        u32::MAX - unsafe { ptr::read_volatile(Self::VALUE) }
    }
}

struct Device {
    console: Stream,
}

impl Platform for Device {
    fn line(&mut self, line: &str) {
        self.console.write(line.as_bytes());
    }

    fn instructions(&mut self) -> Option<u64> {
        Some(40 * u64::from(Timer::ticks()))
    }
}

/// Paints the stack below this call.
#[inline(never)]
fn paint() {
    let end = cortex_m::register::msp::read().saturating_sub(64);
    let mut at = &raw mut __sheap;
    while (at as u32) < end {
        // SAFETY: between the statics and the stack in use, with a margin; nothing lives there.
        unsafe { ptr::write_volatile(at, PAINT) };
        at = at.wrapping_add(1);
    }
}

/// Bytes of the stack that were ever used.
fn high_water() -> u64 {
    let (mut at, end) = (&raw const __sheap, &raw const _stack_start);
    while at < end {
        // SAFETY: within the stack's region; any word can be read.
        if unsafe { ptr::read_volatile(at) } != PAINT {
            break;
        }
        at = at.wrapping_add(1);
    }
    end as u64 - at as u64
}

/// Boots once; whether all was as it must be.
fn run(memory: &mut Memory, flash: &mut [u8; FLASH_LEN]) -> bool {
    let Some(console) = Stream::open(b":tt\0", nr::open::W_TRUNC) else { return false };
    let mut device = Device { console };
    match Stream::open(IMAGE, nr::open::R_BINARY) {
        None => flash.fill(0xff),
        Some(file) => {
            if !(file.read(flash) & file.close()) {
                return false;
            }
        }
    }
    let outcome = boot(&mut device, memory, &mut Nor::new(flash));
    if let Err(fault) = outcome {
        device.line(Line::new("fault", fault.name()).end());
    }
    device.line(Line::new("measured", "stack").number("bytes", high_water()).end());
    let saved = Stream::open(IMAGE, nr::open::W_TRUNC_BINARY).is_some_and(|file| file.write(flash) & file.close());
    outcome.is_ok() && saved
}

#[entry]
fn main() -> ! {
    static mut MEMORY: Memory = Memory::new();
    static mut FLASH: [u8; FLASH_LEN] = [0; FLASH_LEN];
    paint();
    Timer::start();
    let good = run(MEMORY, FLASH);
    debug::exit(if good { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {}
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    debug::exit(debug::EXIT_FAILURE);
    loop {}
}
