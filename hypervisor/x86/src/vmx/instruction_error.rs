//! What the VM-instruction error field says (SDM vol. 3, table 31-1).

/// The error of a VMX instruction in words.
#[must_use]
pub const fn instruction_error(number: u32) -> &'static str {
    match number {
        1 => "VMCALL executed in VMX root operation",
        2 => "VMCLEAR with an invalid physical address",
        3 => "VMCLEAR with the VMXON pointer",
        4 => "VMLAUNCH with a VMCS that is not clear",
        5 => "VMRESUME with a VMCS that is not launched",
        6 => "VMRESUME after VMXOFF",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with an invalid physical address",
        10 => "VMPTRLD with the VMXON pointer",
        11 => "VMPTRLD with an incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE of an unsupported VMCS component",
        13 => "VMWRITE to a read-only VMCS component",
        15 => "VMXON executed in VMX root operation",
        16 => "VM entry with an invalid executive-VMCS pointer",
        17 => "VM entry with a non-launched executive VMCS",
        18 => "VM entry with an executive-VMCS pointer that is not the VMXON pointer",
        20 => "VMCALL with a VMCS that is not clear",
        22 => "VMCALL with an incorrect MSEG revision identifier",
        26 => "VM entry with events blocked by MOV SS",
        28 => "INVEPT or INVVPID with an invalid operand",
        0 => "no current VMCS",
        _ => "a VM-instruction error that the manual does not list",
    }
}
