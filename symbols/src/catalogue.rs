//! The table itself. See [`catalogue!`](crate::catalogue).

/// Calls `$callback!` with the whole table of symbols.
///
/// `hooks` are the functions that the preload library defines, with the System V x86-64 signature that
/// its hook must have. Every integer or pointer argument is a `usize`, whatever its C++ type: it
/// occupies one register or one stack slot, and passing all of it on is exact for any narrower type.
/// The result is what `rax` holds. A `Span` is two words passed by value on the stack. C++ objects
/// that are returned by value (a `shared_ptr`) arrive as a hidden first pointer, here `result`.
///
/// `lookups` are what ttalloc calls itself, with the C++ meaning of the result, or, where it says
/// `at`, what it needs the address of and no more.
#[macro_export]
macro_rules! catalogue {
    ($callback:ident) => {
        $callback! {
            hooks {
                // DeviceAddr allocate_buffer(Buffer*)
                allocate(allocator: usize, buffer: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator15allocate_bufferEPNS0_6BufferE";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl15allocate_bufferEPNS0_6BufferE";
                }
                // void deallocate_buffer(Buffer*)
                deallocate(allocator: usize, buffer: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator17deallocate_bufferEPNS0_6BufferE";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl17deallocate_bufferEPNS0_6BufferE";
                }
                // void deallocate_buffers(). From era B on class Allocator is a mere view, whose
                // function of the same name calls AllocatorImpl's.
                deallocate_all(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator18deallocate_buffersEv";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl18deallocate_buffersEv";
                }
                // void clear()
                clear(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator5clearEv";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl5clearEv";
                }
                // The destructor's variants: D0 frees the object too, D1 is the complete object's, D2
                // the base subobject's. Which one ends an allocator differs by release.
                allocator_end(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9AllocatorD0Ev";
                    [A] "_ZN2tt8tt_metal9AllocatorD1Ev";
                    [A] "_ZN2tt8tt_metal9AllocatorD2Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD0Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD1Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD2Ev";
                }
                // shared_ptr<Buffer> create(IDevice*, size, page_size, BufferType,
                // BufferShardingArgs const&, optional<bool>, optional<SubDeviceId>). Before era C a
                // buffer's size, type and device have no exported accessor: they are read here.
                create(result: usize, device: usize, size: usize, page_size: usize,
                       buffer_type: usize, sharding: usize, bottom_up: usize,
                       sub_device: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer6createEPNS0_7IDeviceEmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                }
                // The overload with an address before the size: no allocator is asked.
                create_at_address(result: usize, device: usize, address: usize, size: usize,
                                  page_size: usize, buffer_type: usize, sharding: usize,
                                  bottom_up: usize, sub_device: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer6createEPNS0_7IDeviceEmmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                    [C] "_ZN2tt8tt_metal10BufferImpl6createEPNS0_7IDeviceEmmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                }
                // shared_ptr<Buffer> view(BufferRegion const&), in era C with the Buffer as argument.
                view(result: usize, buffer: usize, region: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer4viewERKNS0_12BufferRegionE";
                    [C] "_ZN2tt8tt_metal10BufferImpl4viewERNS0_6BufferERKNS0_12BufferRegionE";
                }
                // bool initialize(num_hw_cqs, l1_small_size, trace_region_size, worker_l1_size,
                // span<uint32_t const> l1_bank_remap, bool minimal)
                mesh_open(mesh: usize, command_queues: usize, l1_small: usize, trace: usize,
                          worker_l1: usize, bank_remap: Span, minimal: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice10initializeEhmmmSt4spanIKjLm18446744073709551615EEb";
                }
                // The same one level down, where most releases enter; there from 0.66.0 on.
                mesh_impl_open(implementation: usize, mesh: usize, command_queues: usize,
                               l1_small: usize, trace: usize, worker_l1: usize, bank_remap: Span,
                               minimal: usize) = {
                    [B C] "_ZN2tt8tt_metal11distributed14MeshDeviceImpl15initialize_implEPNS1_10MeshDeviceEhmmmSt4spanIKjLm18446744073709551615EEb";
                }
                // bool close()
                mesh_close(mesh: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice5closeEv";
                }
                // bool close_impl(MeshDevice*), also called by the destructor; from 0.66.0 on.
                mesh_impl_close(implementation: usize, mesh: usize) = {
                    [B C] "_ZN2tt8tt_metal11distributed14MeshDeviceImpl10close_implEPNS1_10MeshDeviceE";
                }
                // bool close()
                device_close(device: usize) = {
                    [A B C] "_ZN2tt8tt_metal6Device5closeEv";
                }
                // void set_hybrid_device_allocators(vector<AllocatorImpl*> const&), from 0.70.1 on, and
                // bool try_begin_hybrid_allocation(the same), from 0.80.0 on: a chip's L1 is about to be
                // given core by core, which the statistics of the chip's allocator leave out.
                hybrid(allocator: usize, allocators: usize) = {
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl28set_hybrid_device_allocatorsERKSt6vectorIPS1_SaIS3_EE";
                    [C] "_ZN2tt8tt_metal13AllocatorImpl27try_begin_hybrid_allocationERKSt6vectorIPS1_SaIS3_EE";
                }
            }
            lookups {
                // DeviceAddr Buffer::aligned_size_per_bank() const: bytes in every bank of the type
                bytes_per_bank: required (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer21aligned_size_per_bankEv";
                }
                // uint32_t Buffer::address() const; throws while nothing is allocated
                address: required (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer7addressEv";
                }
                // DeviceAddr Buffer::page_size() const: bytes
                page_size: required (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer9page_sizeEv";
                }
                // DeviceAddr Buffer::size() const: bytes
                size: required (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer4sizeEv";
                }
                // BufferType Buffer::buffer_type() const
                buffer_type: required (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer11buffer_typeEv";
                }
                // IDevice* Buffer::device() const
                device: required (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer6deviceEv";
                }
                // uint32_t get_num_banks(BufferType const&) const
                num_banks: required (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_num_banksERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_num_banksERKNS0_10BufferTypeE";
                }
                // DeviceAddr get_bank_size(BufferType const&) const: bytes
                bank_size: required (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_bank_sizeERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_bank_sizeERKNS0_10BufferTypeE";
                }
                // uint32_t get_alignment(BufferType) const: bytes
                alignment: required (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_alignmentENS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_alignmentENS0_10BufferTypeE";
                }
                // Statistics get_statistics(BufferType const&) const: bytes per bank, four words
                // (allocatable, allocated, free, largest free block), up to 0.68 with a vector behind.
                // Takes the allocator's lock; throws for SYSTEM_MEMORY and types without banks.
                statistics: optional (result: usize, allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator14get_statisticsERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl14get_statisticsERKNS0_10BufferTypeE";
                }
                // unique_ptr<AllocatorImpl> const& MeshDevice::allocator_impl() const
                mesh_allocator: optional (mesh: usize) = {
                    [A] "_ZNK2tt8tt_metal11distributed10MeshDevice9allocatorEv";
                    [B C] "_ZNK2tt8tt_metal11distributed10MeshDevice14allocator_implEv";
                }
                // int MeshDevice::id() const: counted by the process, not a chip's id. Where the virtual
                // table has it, every IDevice has its own.
                mesh_id: required at = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice2idEv";
                }
                // vector<int> MeshDevice::get_device_ids() const: the chips' ids
                mesh_chips: required (result: usize, mesh: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice14get_device_idsEv";
                }
                // tt::ARCH MeshDevice::arch() const, likewise
                mesh_arch: required at = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice4archEv";
                }
                // The virtual tables, by which a MeshDevice and a Device are told apart.
                mesh_vtable: required at = {
                    [A B C] "_ZTVN2tt8tt_metal11distributed10MeshDeviceE";
                }
                device_vtable: required at = {
                    [A B C] "_ZTVN2tt8tt_metal6DeviceE";
                }
            }
        }
    };
}
